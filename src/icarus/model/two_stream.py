"""The two-stream model: the forward of a whole batch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from icarus.cache.kv import KVPool
from icarus.model.batch import StepBatch
from icarus.model.config import ModelConfig
from icarus.model.layers import DecoderLayer, Norm
from icarus.model.rotation import Rotation, rope_frequencies


class TwoStreamModel:
    """Runs the encoder (base) and the decoder (base + LoRA) rows of a batch in one pass.

    See docs/architecture.md, "The two streams".
    """

    def __init__(
        self,
        config: ModelConfig,
        embedding: Tensor,
        layers: Sequence[DecoderLayer],
        norm: Norm,
        lm_head: Callable[[Tensor], Tensor],
    ):
        self.config = config
        self.kv_rows_written = 0
        """Write rows of every forward so far."""
        self._embedding = embedding
        self._layers = layers
        self._norm = norm
        self._lm_head = lm_head
        self._frequencies = rope_frequencies(config.rope, embedding.device)

    @property
    def dtype(self) -> torch.dtype:
        return self._embedding.dtype

    @property
    def device(self) -> torch.device:
        return self._embedding.device

    @torch.inference_mode()
    def forward(self, batch: StepBatch, kv: KVPool) -> Tensor:
        """Writes the KV of the batch's write rows; returns logits [num_samples, vocab_size], float32."""
        self.kv_rows_written += batch.num_writes
        return self.compute(batch, kv)

    @torch.inference_mode()
    def compute(self, batch: StepBatch, kv: KVPool) -> Tensor:
        """`forward` without its count: what a CUDA graph records."""
        hidden = self._embedding[batch.token_ids]
        added = torch.zeros_like(hidden)
        rotation = Rotation.at(batch.positions, self._frequencies)
        last = len(self._layers) - 1
        for index, layer in enumerate(self._layers):
            queries = batch.sampled if index == last else batch.every
            hidden, added = layer(hidden, added, batch, queries, rotation, kv.layer(index))
        order = batch.sample_order
        return self._lm_head(self._norm.of_sum(hidden[order], added[order])).float()
