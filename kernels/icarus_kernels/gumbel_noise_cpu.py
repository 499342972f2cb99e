"""Gumbel noise on the CPU."""

import numpy as np
import torch
from numba import float32, uint64
from torch import Tensor

from icarus_kernels.cpu_kernel import CPUKernel, arguments_of, at_address, inner, my_share, thread_number, threads_for
from icarus_kernels.cpu_lanes import WIDTH, load, log, smaller, splat, store

WORD_TOKENS = WIDTH
"""Tokens in a row that have the same word of their counters."""
TILE = 4 * WORD_TOKENS
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_ROUND_A, _ROUND_B = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_KEY_A, _KEY_B = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)


_LOGITS, _KEYS, _WORKSPACE, _ROWS, _VOCAB = range(5)
"""Where the kernel finds what in its arguments: the order of `add_gumbel_noise_cpu`."""


def add_gumbel_noise_cpu(logits: Tensor, keys: Tensor) -> None:
    """As `add_gumbel_noise`."""
    num_threads = threads_for(logits.numel())
    workspace = torch.empty(num_threads * TILE)
    _ADD(torch.float32, num_threads, *(t.data_ptr() for t in (logits, keys, workspace)), *logits.shape)


def _add(p):
    a = arguments_of(p)
    logits, keys, rows, vocab = at_address(a[_LOGITS], p), at_address(a[_KEYS], uint64), a[_ROWS], a[_VOCAB]
    noise = at_address(a[_WORKSPACE] + 4 * TILE * thread_number(), p)
    num_tiles = (vocab + TILE - 1) // TILE
    begin, end = my_share(rows * num_tiles)
    for i in range(begin, end):
        row, tile = i // num_tiles, i % num_tiles
        _draw_uniform(noise, keys[2 * row], keys[2 * row + 1], uint64(tile * WORD_TOKENS))
        at, count = row * vocab + tile * TILE, min(TILE, vocab - tile * TILE)
        whole = count // WIDTH * WIDTH
        for d in range(0, whole, WIDTH):
            store(logits, at + d, load(logits, at + d) + gumbel(load(noise, d)))
        for d in range(whole, count):
            if d == whole:
                store(noise, d, gumbel(load(noise, d)))
            logits[at + d] += noise[d]


@inner
def _draw_uniform(uniform, seed, index, first):
    """uniform [TILE], in (0, 1]: 32 random bits each, by Philox4x32-10 as the reference has it."""
    for lane in range(WORD_TOKENS):
        c0, c1, c2, c3 = first + uint64(lane), index & _LOW, uint64(0), uint64(0)
        k0, k1 = seed & _LOW, seed >> _HALF
        for _ in range(10):
            a, b = _ROUND_A * c0, _ROUND_B * c2
            c0, c1, c2, c3 = (b >> _HALF) ^ c1 ^ k0, b & _LOW, (a >> _HALF) ^ c3 ^ k1, a & _LOW
            k0, k1 = (k0 + _KEY_A) & _LOW, (k1 + _KEY_B) & _LOW
        uniform[lane] = _as_uniform(c0)
        uniform[WORD_TOKENS + lane] = _as_uniform(c1)
        uniform[2 * WORD_TOKENS + lane] = _as_uniform(c2)
        uniform[3 * WORD_TOKENS + lane] = _as_uniform(c3)


@inner
def _as_uniform(word):
    return float32(word) * float32(2.0**-32) + float32(2.0**-33)


@inner
def gumbel(u):
    """-log(-log(1 - u)); where 1 - u is rounded, what was lost is added."""
    u = smaller(u, splat(float32(1 - 2.0**-24)))
    rest = splat(float32(1)) - u
    lost = splat(float32(1)) - rest - u
    return splat(float32(0)) - log(splat(float32(0)) - (log(rest) + lost / rest))


_ADD = CPUKernel(_add, (torch.float32,))
