"""The loss of a specialist, by transformers and peft with no model change (DESIGN section 2)."""

import functools
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import DynamicCache

from icarus.errors import ConfigError
from icarus.training.batches import IGNORED
from icarus.types import AdapterMode


class EncoderKV:
    """A cache for the decoder: answers every layer with the encoder's K and V and drops what it is given."""

    is_compileable = False
    is_initialized = True

    def __init__(self, filled: DynamicCache):
        self._filled = filled
        self.is_sliding = [False] * len(filled)

    def __len__(self) -> int:
        return len(self._filled)

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        layer: Any = self._filled.layers[layer_idx]
        return layer.keys, layer.values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query: Any, layer_idx: int = 0) -> tuple[int, int]:
        return self._filled.get_seq_length(layer_idx), 0

    def get_max_cache_shape(self, *args: Any) -> int:
        return -1


def backbone_of(model: PeftModel) -> Any:
    """The layers without the output head."""
    causal: Any = model.get_base_model()
    return getattr(causal, causal.base_model_prefix)


def decode_rows(model: PeftModel, row_ids: Tensor, positions: Tensor, kv: DynamicCache, visible: Tensor) -> Tensor:
    """Last hidden states [examples, rows, hidden] of the adapted stream over the encoder's KV.

    row_ids, positions: [examples, rows]; visible: bool [examples, rows, tokens], which positions a row attends to.
    """
    return backbone_of(model)(
        input_ids=row_ids,
        position_ids=positions,
        attention_mask=visible[:, None],
        past_key_values=EncoderKV(kv),
        use_cache=True,
    ).last_hidden_state


class AnswerLoss(nn.Module):
    """Summed cross-entropy of a batch's answer tokens, a float32 scalar. Its parameters are the model's."""

    def __init__(self, model: PeftModel):
        """Raises ConfigError where transformers' own gradient checkpointing is on."""
        super().__init__()
        causal: Any = model.get_base_model()
        if causal.is_activation_checkpointing:
            raise ConfigError(
                "transformers' gradient checkpointing drops the cache that the decoder reads, and would train an "
                "ordinary LoRA; use `checkpoint_layers`"
            )
        self.model = model

    def forward(self, input_ids: Tensor, positions: Tensor, labels: Tensor) -> Tensor:
        """The tensors of a `Batch`."""
        hidden = self._hidden_rows(input_ids, positions)
        learned = labels != IGNORED
        causal: Any = self.model.get_base_model()
        head = causal.get_output_embeddings()
        return F.cross_entropy(head(hidden[learned]).float(), labels[learned], reduction="sum")

    def _hidden_rows(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """[examples, rows, hidden]"""
        raise NotImplementedError


class SharedAnswerLoss(AnswerLoss):
    """A decoder that reads the KV of the frozen base.

    The encoder runs over the whole text without gradients; the decoder only over the rows that predict answer tokens,
    because no other token reads anything that it computes. Padding is on the right, where causality hides it.
    """

    def _hidden_rows(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        kv = DynamicCache()
        with torch.no_grad(), self.model.disable_adapter():
            backbone_of(self.model)(input_ids=input_ids, past_key_values=kv, use_cache=True)
        visible = torch.arange(input_ids.shape[1], device=input_ids.device) <= positions[..., None]
        return decode_rows(self.model, input_ids.gather(1, positions), positions, kv, visible)


class PrivateAnswerLoss(AnswerLoss):
    """One adapted stream with KV of its own: ordinary LoRA."""

    def _hidden_rows(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        hidden = backbone_of(self.model)(input_ids=input_ids, use_cache=False).last_hidden_state
        return hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))


def answer_loss(model: PeftModel, mode: AdapterMode) -> AnswerLoss:
    return (SharedAnswerLoss if mode is AdapterMode.SHARED else PrivateAnswerLoss)(model)


def checkpoint_layers(model: PeftModel) -> None:
    """Makes the backward pass compute each layer again instead of keeping its activations.

    transformers' own switch drops the cache. Here layers keep their arguments, the encoder's KV among them. The encoder
    runs without gradients and is not affected. Call once.
    """
    for layer in backbone_of(model).layers:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
