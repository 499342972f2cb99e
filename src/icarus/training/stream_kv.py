"""What a stream writes and what a decoder reads, as caches that transformers accepts and gradients may pass."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor, cat


class LayerKV(NamedTuple):
    """[examples, heads, tokens, head_dim] each."""

    keys: Tensor
    values: Tensor


class FilledKV(Protocol):
    """A cache that has been written: one of ours, or transformers'."""

    @property
    def layers(self) -> Sequence[Any]: ...

    def get_seq_length(self) -> int: ...


class _Cache:
    """What transformers asks of a cache, whatever it holds. All attention is full."""

    is_compileable = False
    is_initialized = True

    def __init__(self, num_layers: int):
        self.is_sliding = [False] * num_layers

    def __len__(self) -> int:
        return len(self.is_sliding)

    def get_max_cache_shape(self, *args: Any) -> int:
        return -1


class StreamKV(_Cache):
    """The KV of one pass behind that of a `prefix` [1 example], which all its examples share.

    Unlike transformers' it keeps nothing of earlier writes, so a layer may run twice, as checkpointing makes it do.
    """

    def __init__(self, num_layers: int, prefix: "StreamKV | None" = None):
        super().__init__(num_layers)
        self._prefix = prefix.layers if prefix else ()
        self._num_past = prefix.get_seq_length() if prefix else 0
        self._written: dict[int, LayerKV] = {}

    @property
    def layers(self) -> list[LayerKV]:
        return [self._written[index] for index in sorted(self._written)]

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> LayerKV:
        kv = LayerKV(keys, values)
        if self._prefix:
            past = (old.expand(len(keys), -1, -1, -1) for old in self._prefix[layer_idx])
            kv = LayerKV(*(cat(pair, dim=2) for pair in zip(past, kv, strict=True)))
        self._written[layer_idx] = kv
        return kv

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._written[layer_idx].keys.shape[2] if layer_idx in self._written else self._num_past

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self._num_past

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self._num_past + query_length, 0


class EncoderKV(_Cache):
    """A cache for the decoder: answers every layer with the encoder's K and V and drops what it is given."""

    def __init__(self, filled: FilledKV):
        super().__init__(len(filled.layers))
        self._layers = filled.layers
        self._num_tokens = filled.get_seq_length()

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        layer = self._layers[layer_idx]
        return layer.keys, layer.values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self._num_tokens, 0
