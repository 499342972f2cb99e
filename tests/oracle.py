"""The two streams by transformers and peft alone: the numerical reference (docs/architecture.md, "The two streams")."""

from collections.abc import Sequence

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache


class FrozenCache:
    """Answers every layer of a whole-text forward with another model's K and V and drops what it is given.

    Its K and V are of the whole text in windowed layers too: there transformers' mask hides what is outside.
    """

    is_compileable = False
    is_initialized = True

    def __init__(self, filled: DynamicCache):
        self._filled = filled
        self.is_sliding = [False] * len(filled)

    def __len__(self) -> int:
        return len(self._filled)

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        layer = self._filled.layers[layer_idx]
        assert layer.keys.shape == keys.shape, "the two streams run over the same text"
        return layer.keys, layer.values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query, layer_idx: int = 0) -> tuple[int, int]:
        return (query if isinstance(query, int) else len(query)), 0

    def get_max_cache_shape(self, *args) -> int:
        return -1


def base_logits(model: PreTrainedModel, token_ids: Sequence[int]) -> Tensor:
    """Logits [tokens, vocab] of the base model."""
    with torch.no_grad():
        return model(torch.tensor([list(token_ids)]), use_cache=False).logits[0]


def base_kv(model: PreTrainedModel, token_ids: Sequence[int]) -> Tensor:
    """K and V of the base model: [layers, 2, tokens, kv_heads, head_dim]."""
    cache = DynamicCache()
    with torch.no_grad():
        model(torch.tensor([list(token_ids)]), past_key_values=cache, use_cache=True)
    return torch.stack([torch.stack((layer.keys[0], layer.values[0])) for layer in cache.layers]).transpose(2, 3)


def shared_logits(model: PeftModel, token_ids: Sequence[int]) -> Tensor:
    """Logits [tokens, vocab] of the active adapter reading the base's K and V."""
    ids = torch.tensor([list(token_ids)])
    encoder = DynamicCache()
    with torch.no_grad(), model.disable_adapter():
        model(input_ids=ids, past_key_values=encoder, use_cache=True)
    with torch.no_grad():
        return model(input_ids=ids, past_key_values=FrozenCache(encoder), use_cache=True).logits[0]


def private_logits(model: PeftModel, token_ids: Sequence[int]) -> Tensor:
    """Logits [tokens, vocab] of the active adapter with its own K and V: ordinary LoRA."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([list(token_ids)]), use_cache=False).logits[0]
