"""The loss of a specialist, by transformers and peft with no model change (docs/architecture.md, "The two streams")."""

import functools
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from icarus.errors import ConfigError
from icarus.training.batches import IGNORED
from icarus.training.stream_kv import EncoderKV, FilledKV, StreamKV
from icarus.types import AdapterMode

Model = PeftModel | PreTrainedModel
"""With an adapter, or the base alone, which has a stream of its own and no other."""


def causal_of(model: Model) -> Any:
    """transformers' model, whether an adapter is around it or not."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def backbone_of(model: Model) -> Any:
    """The layers without the output head."""
    causal = causal_of(model)
    return getattr(causal, causal.base_model_prefix)


def write_rows(model: Model, input_ids: Tensor, num_shared: int) -> tuple[Tensor, StreamKV]:
    """One stream over `input_ids` [examples, tokens], adapted or not, that writes its own KV.

    All examples begin with the same `num_shared` tokens, which are computed once. Returns the last hidden states of the
    other tokens and the KV of all.
    """
    backbone, prefix = backbone_of(model), None
    if num_shared:
        prefix = StreamKV(len(backbone.layers))
        backbone(input_ids=input_ids[:1, :num_shared], past_key_values=prefix, use_cache=True)
    kv = StreamKV(len(backbone.layers), prefix)
    rest = backbone(input_ids=input_ids[:, num_shared:], past_key_values=kv, use_cache=True)
    return rest.last_hidden_state, kv


def num_shared_tokens(input_ids: Tensor, positions: Tensor) -> int:
    """How many tokens all examples of a `Batch` begin with (a system turn, say), at most to their first rows."""
    if len(input_ids) == 1:
        return 0
    alike = (input_ids == input_ids[:1]).all(dim=0).long().cumprod(dim=0).sum()
    return int(torch.minimum(alike, positions[:, 0].min()))


def decode_rows(model: PeftModel, row_ids: Tensor, positions: Tensor, kv: FilledKV, visible: Tensor) -> Tensor:
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

    def __init__(self, model: Model):
        """Raises ConfigError where transformers' own gradient checkpointing is on."""
        super().__init__()
        if causal_of(model).is_activation_checkpointing:
            raise ConfigError(
                "transformers' gradient checkpointing drops the cache that the decoder reads, and would train an "
                "ordinary LoRA; use `checkpoint_layers`"
            )
        self.model: Any = model

    def forward(self, input_ids: Tensor, positions: Tensor, labels: Tensor) -> Tensor:
        """The tensors of a `Batch`."""
        hidden = self._hidden_rows(input_ids, positions)
        learned = labels != IGNORED
        head = causal_of(self.model).get_output_embeddings()
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
        with torch.no_grad(), self.model.disable_adapter():
            _, kv = write_rows(self.model, input_ids, num_shared_tokens(input_ids, positions))
        visible = torch.arange(input_ids.shape[1], device=input_ids.device) <= positions[..., None]
        return decode_rows(self.model, input_ids.gather(1, positions), positions, kv, visible)


class PrivateAnswerLoss(AnswerLoss):
    """One stream with KV of its own: ordinary LoRA, or the base alone."""

    def _hidden_rows(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        num_shared = num_shared_tokens(input_ids, positions)
        hidden, _ = write_rows(self.model, input_ids, num_shared)
        rows = (positions - num_shared).clamp(min=0)  # below it is padding alone
        return hidden.gather(1, rows[..., None].expand(-1, -1, hidden.shape[-1]))


def answer_loss(model: Model, mode: AdapterMode) -> AnswerLoss:
    """The loss of a specialist of that mode; the base's own is a private one's."""
    return (SharedAnswerLoss if mode is AdapterMode.SHARED else PrivateAnswerLoss)(model)


def checkpoint_layers(model: PeftModel) -> None:
    """Makes the backward pass compute each layer again instead of keeping its activations.

    transformers' own switch drops the cache. Here layers keep their arguments, the KV that they read among them. The
    encoder runs without gradients and is not affected. Call once.
    """
    for layer in backbone_of(model).layers:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
