"""From logits to tokens. The noise is a pure function of (seed, output index): no generator state is kept, so a turn
that is preempted or goes on at another worker draws the same tokens."""

import hashlib
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from icarus.types import SamplingParams


def sample(logits: Tensor, params: Sequence[SamplingParams], output_indices: Sequence[int]) -> list[int]:
    """logits [n, vocab] float32; one parameter set and output index a row -> n token ids."""
    tokens = logits.argmax(-1)
    for row, (param, index) in enumerate(zip(params, output_indices, strict=True)):
        if param.temperature > 0:
            tokens[row] = _sample_row(logits[row], param, index)
    return tokens.tolist()


def _sample_row(logits: Tensor, params: SamplingParams, output_index: int) -> Tensor:
    """Gumbel-max over the tokens that top-k and top-p keep; logits [vocab]."""
    scaled = _keep_top_p(_keep_top_k(logits / params.temperature, params.top_k), params.top_p)
    return (scaled + _gumbel_noise(params.seed, output_index, logits.shape[0]).to(logits.device)).argmax()


def _keep_top_k(logits: Tensor, top_k: int) -> Tensor:
    if top_k == 0 or top_k >= logits.shape[0]:
        return logits
    kept = logits.topk(top_k).indices
    return torch.full_like(logits, -torch.inf).scatter(0, kept, logits[kept])


def _keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Keeps the smallest set of most likely tokens whose probabilities reach top_p."""
    if top_p >= 1:
        return logits
    ordered, indices = logits.sort(descending=True, stable=True)
    before = ordered.softmax(0).cumsum(0) - ordered.softmax(0)
    return torch.full_like(logits, -torch.inf).scatter(0, indices, ordered.masked_fill(before >= top_p, -torch.inf))


def _gumbel_noise(seed: int, output_index: int, size: int) -> Tensor:
    """[size] float32, always drawn on the CPU so that every device sees the same."""
    key = hashlib.sha256(struct.pack("<QQ", seed, output_index)).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little", signed=True))
    return -torch.empty(size).exponential_(generator=generator).log()
