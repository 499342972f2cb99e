"""Gumbel noise on a GPU."""

# pyright: reportCallIssue=false

import triton
import triton.language as tl
from torch import Tensor

from icarus_kernels.gumbel_noise_cpu import TILE, WORD_TOKENS
from icarus_kernels.triton_launch import cdiv

_BLOCK = 256
"""Counters of a program, for four tokens each."""


@triton.jit
def _add_noise(logits, tokens, vocab, word):
    """-log(-log(1 - u)). Where u is small the logarithm of a GPU has too few right digits: a series instead."""
    u = tl.minimum(word.to(tl.float32) * 2.0**-32 + 2.0**-33, 1.0 - 2.0**-24)
    series = u * (1.0 + u * (1 / 2 + u * (1 / 3 + u * (1 / 4 + u * (1 / 5)))))
    noise = -tl.log(tl.where(u < 2.0**-5, series, -tl.log(1.0 - u)))
    is_token = tokens < vocab
    tl.store(logits + tokens, tl.load(logits + tokens, mask=is_token) + noise, mask=is_token)


@triton.jit
def add_noise_kernel(logits, keys, vocab, BLOCK: tl.constexpr, WORD_TOKENS: tl.constexpr, TILE: tl.constexpr):
    """BLOCK counters of one row."""
    row = tl.program_id(0).to(tl.int64)
    counters = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    seed, index = tl.load(keys + 2 * row), tl.load(keys + 2 * row + 1)
    zero = tl.zeros([BLOCK], tl.uint32)
    a, b, c, d = tl.philox(seed, counters.to(tl.uint32), zero + index.to(tl.uint32), zero, zero)
    tokens = counters // WORD_TOKENS * TILE + counters % WORD_TOKENS
    _add_noise(logits + row * vocab, tokens, vocab, a)
    _add_noise(logits + row * vocab, tokens + WORD_TOKENS, vocab, b)
    _add_noise(logits + row * vocab, tokens + 2 * WORD_TOKENS, vocab, c)
    _add_noise(logits + row * vocab, tokens + 3 * WORD_TOKENS, vocab, d)


def add_gumbel_noise_triton(logits: Tensor, keys: Tensor) -> None:
    """As `add_gumbel_noise`."""
    rows, vocab = logits.shape
    num_counters = cdiv(vocab, TILE) * WORD_TOKENS
    if rows:
        add_noise_kernel[(rows, cdiv(num_counters, _BLOCK))](
            logits, keys, vocab, BLOCK=_BLOCK, WORD_TOKENS=WORD_TOKENS, TILE=TILE, num_warps=4
        )
