"""Tiny random models and adapters on disk, in the formats of the real ones. Shared by every test that needs one."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from icarus.adapters.lora import LoraWeights
from icarus.types import AdapterMode

DEVICE = os.environ.get("ICARUS_TEST_DEVICE", "cpu")
"""Where the tests of the model, the engine and the services compute: "cuda" in `make test-gpu`. The oracle stays on the
CPU."""
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Ids 0, 1 and 2; the last one is the end of sequence."""
EOS = 2
SHARED_TARGETS = ("q_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PRIVATE_TARGETS = (*SHARED_TARGETS, "k_proj", "v_proj")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_model(
    path: Path,
    family: str,
    heads: int = 4,
    kv_heads: int = 2,
    vocab: int = 320,
    tie: bool = True,
    seed: int = 0,
    *,
    layers: int = 3,
    head_dim: int = 16,
    hidden: int | None = None,
    context: int = 512,
    max_shard_size: str = "1GB",
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> Path:
    """Writes a random model with a byte-level ChatML tokenizer to `path` and returns it. `vocab` >= 259.

    `family` is transformers' model type ("qwen3"); `settings` are of its configuration. `hidden` is heads * head_dim
    unless given: only some families let it differ.
    """
    torch.manual_seed(seed)
    hidden = hidden or heads * head_dim
    config = AutoConfig.for_model(
        family,
        hidden_size=hidden,
        intermediate_size=3 * hidden // 2,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocab,
        max_position_embeddings=context,
        tie_word_embeddings=tie,
        initializer_range=0.15,
        bos_token_id=1,
        eos_token_id=EOS,
        pad_token_id=0,
        **({} if family == "qwen2" else {"head_dim": head_dim}),
        **settings,
    )
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    model.to(dtype).save_pretrained(path, max_shard_size=max_shard_size)
    tiny_tokenizer().save_pretrained(path)
    return path


def tiny_llama(path: Path, *args: Any, bias: bool = False, **kwargs: Any) -> Path:
    """`tiny_model` of the family that most tests use."""
    return tiny_model(path, "llama", *args, attention_bias=bias, mlp_bias=bias, **kwargs)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """259 tokens: the special ones, then one a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=SPECIAL_TOKENS[0],
        bos_token=SPECIAL_TOKENS[1],
        eos_token=SPECIAL_TOKENS[2],
        pad_token=SPECIAL_TOKENS[2],
        chat_template=CHAT_TEMPLATE,
    )


def load_reference(path: Path, **kwargs: Any) -> PreTrainedModel:
    """The model as transformers sees it, in float32. `kwargs` as from_pretrained has them."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **kwargs).eval()


def tiny_adapter(
    path: Path,
    base: Path,
    rank: int = 4,
    seed: int = 0,
    *,
    targets: Sequence[str] = SHARED_TARGETS,
    zero: bool = False,
    rslora: bool = False,
) -> Path:
    """Writes a random adapter with peft's own saver, and returns its folder. A zero one has B = 0."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank + 1,
        target_modules=list(targets),
        use_rslora=rslora,
        task_type="CAUSAL_LM",
        bias="none",
    )
    model = get_peft_model(load_reference(base), config)
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.data = torch.randn(parameter.shape) / parameter.shape[1] ** 0.5
        elif "lora_B" in name:
            parameter.data = torch.randn(parameter.shape) * (0.0 if zero else 0.1)
    model.save_pretrained(path)
    return path


def load_adapted_reference(base: Path, adapter: Path) -> PeftModel:
    """The adapted model as peft sees it, in float32."""
    return PeftModel.from_pretrained(load_reference(base), str(adapter)).eval()


def read_adapter(path: Path, mode: AdapterMode, dtype: torch.dtype = torch.float32) -> LoraWeights:
    """An adapter's weights straight from peft's file: independent of `icarus.adapters.peft_folder`."""
    config = LoraConfig.from_pretrained(str(path))
    scaling = config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
    tensors = load_file(path / "adapter_model.safetensors")
    modules = {}
    for key, a in tensors.items():
        if key.endswith("lora_A.weight"):
            parts = key.split(".")
            b = tensors[key.replace("lora_A", "lora_B")] * scaling
            modules[int(parts[parts.index("layers") + 1]), parts[-3]] = (a.to(DEVICE, dtype), b.to(DEVICE, dtype))
    return LoraWeights(path.name, f"digest-of-{path.name}", mode, config.r, max(modules)[0] + 1, modules)
