"""The base model with a fresh LoRA, ready to be trained; or with a saved one, to be measured."""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel

from icarus.errors import ConfigError, InvalidInputError
from icarus.model.hub import published_name
from icarus.training.batches import collate
from icarus.training.examples import Example
from icarus.training.loss import SharedAnswerLoss
from icarus.training.model_config import check_window, read_model_config
from icarus.training.settings import TrainSettings

_PROBE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""Nats per token."""
_FULL_ATTENTION = {"full_attention", "sliding_attention"}


def load_base(folder: Path, dtype: str, max_length: int) -> PreTrainedModel:
    """The base model, frozen. Raises ConfigError for one that cannot be loaded, and for attention that two streams over
    one cache do not cover."""
    config = read_model_config(folder)
    if others := set(getattr(config, "layer_types", None) or ()) - _FULL_ATTENTION:
        raise ConfigError(f"model {folder} has layers of type {', '.join(sorted(others))}; only attention is supported")
    check_window(config, max_length)
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # PEFT asks for it
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {folder} cannot be loaded: {str(error).splitlines()[0]}") from None
    return model.requires_grad_(False)


def add_lora(base: PreTrainedModel, settings: TrainSettings) -> PeftModel:
    """Fresh LoRA weights, float32 whatever the base's precision. Raises InvalidInputError for unknown targets."""
    torch.manual_seed(settings.seed)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.lora_alpha,  # pyright: ignore[reportArgumentType]  # a float does
        lora_dropout=settings.dropout,
        target_modules=list(settings.target_modules),
        task_type="CAUSAL_LM",
        bias="none",
    )
    names = {name.rpartition(".")[2] for name, module in base.named_modules() if isinstance(module, nn.Linear)}
    if missing := sorted(set(settings.target_modules) - names):
        has = ", ".join(sorted(names))
        raise InvalidInputError(
            f"target {missing[0]!r} is no linear projection of model {settings.model}: it has {has}"
        )
    model: Any = get_peft_model(base, config, autocast_adapter_dtype=True)
    config.base_model_name_or_path = published_name(settings.model)  # peft has the folder, this machine's affair
    return model


@torch.no_grad()
def check_two_streams(model: PeftModel, example: Example) -> None:
    """A fresh LoRA changes nothing, so two streams must give the model's own loss. Raises ConfigError otherwise.

    It finds models whose forward does what ours leaves out: scaled or capped logits, other masks.
    """
    batch = collate([example])
    causal: Any = model.get_base_model()
    training = model.training
    model.eval()
    loss = SharedAnswerLoss(model)(batch.input_ids, batch.positions, batch.labels).item()
    logits = causal(input_ids=batch.input_ids, use_cache=False).logits[0, batch.positions[0]]
    model.train(training)
    reference = F.cross_entropy(logits.float(), batch.labels[0], reduction="sum").item()
    difference = abs(loss - reference) / len(example.answer_ids)
    if not difference <= _PROBE_TOLERANCE[causal.dtype] * max(1.0, reference / len(example.answer_ids)):
        raise ConfigError(
            f"two streams over one cache do not reproduce model type {causal.config.model_type!r}: its loss differs by "
            f"{difference:.3g} nats a token; this architecture is not supported yet"
        )
