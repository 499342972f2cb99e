"""The noise that sampling adds to logits: the token with the largest sum is a draw from their softmax."""

import math

import torch
from torch import Tensor

from icarus_kernels.gumbel_noise_cpu import TILE, WORD_TOKENS, add_gumbel_noise_cpu


def add_gumbel_noise(logits: Tensor, keys: Tensor) -> None:
    """logits += Gumbel noise, in place: a pure function of a row's key and the token, of the same random integers on
    every device.

    logits  [rows, vocab] float32, contiguous
    keys    [rows, 2] uint64, contiguous: a seed, and which token of the output is drawn
    """
    assert logits.dtype is torch.float32 and logits.is_contiguous(), f"logits are {logits.dtype}, {logits.stride()}"
    assert keys.dtype is torch.uint64 and keys.is_contiguous(), f"keys are {keys.dtype}, strides {keys.stride()}"
    assert logits.is_cuda is keys.is_cuda, f"logits are on {logits.device}, keys on {keys.device}"
    if logits.is_cuda:
        from icarus_kernels.gumbel_noise_triton import add_gumbel_noise_triton

        add_gumbel_noise_triton(logits, keys)
    else:
        add_gumbel_noise_cpu(logits, keys)


def add_gumbel_noise_reference(logits: Tensor, keys: Tensor) -> None:
    """The same, one token at a time, in float64."""
    for row, (seed, index) in enumerate(keys.tolist()):
        for token in range(logits.shape[1]):
            logits[row, token] += _noise(random_word(seed, index, token))


def _noise(word: int) -> float:
    """-log(-log(1 - u)) of u in (0, 1), which is finest where the noise is largest."""
    return -math.log(-math.log1p(-min((word + 0.5) / 2**32, 1 - 2**-24)))


def random_word(seed: int, index: int, token: int) -> int:
    """32 random bits. One counter gives four words; a tile of tokens has the first of each of its counters, then the
    second of each, and so on."""
    tile, offset = divmod(token, TILE)
    word, counter = divmod(offset, WORD_TOKENS)
    return philox((tile * WORD_TOKENS + counter, index, 0, 0), (seed % 2**32, seed >> 32))[word]


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3; SC 2011)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        first, second = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (second >> 32) ^ c1 ^ k0, second % 2**32, (first >> 32) ^ c3 ^ k1, first % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3
