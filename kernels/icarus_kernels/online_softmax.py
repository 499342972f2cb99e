"""A row of scores becomes weights, a tile of keys at a time (as in FlashAttention, https://arxiv.org/abs/2205.14135)."""

import math

import numpy as np
from numba import float32

from icarus_kernels.cpu_dot_tiles import store_rounded
from icarus_kernels.cpu_kernel import inner
from icarus_kernels.cpu_lanes import WIDTH, exp2, fma, larger, largest, load, splat, store
from icarus_kernels.kv_tiles import KEYS

LOWEST, ZERO = np.float32(-1e30), np.float32(0)
_LOG2_E = math.log2(math.e)


@inner
def begin_rows(num_rows, sums, weight_sums, best, head_dim):
    """Nothing has been weighed yet."""
    for row in range(num_rows):
        best[row] = LOWEST
        store(weight_sums, row * WIDTH, splat(ZERO))
    for at in range(0, num_rows * head_dim, WIDTH):
        store(sums, at, splat(ZERO))


@inner
def weigh(scores, row, weights, sums, weight_sums, best, head_dim):
    """A row's scores become weights relative to the largest so far; what it has is scaled to the same.

    scores       [rows, KEYS] float32, of one tile
    weights      [rows, KEYS] bfloat16
    sums         [rows, head_dim] float32: weighted sums of values
    weight_sums  [rows, WIDTH] float32; their total counts
    best         [rows] float32: the largest score, times log2(e) / sqrt(head_dim)
    """
    scale = splat(float32(_LOG2_E / math.sqrt(head_dim)))
    at = row * KEYS
    high = load(scores, at)
    for i in range(WIDTH, KEYS, WIDTH):
        high = larger(high, load(scores, at + i))
    before = best[row]
    now = max(before, largest(high * scale))
    if now > before:
        best[row] = now
        shrink = splat(float32(math.exp2(before - now)))
        store(weight_sums, row * WIDTH, load(weight_sums, row * WIDTH) * shrink)
        for d in range(row * head_dim, (row + 1) * head_dim, WIDTH):
            store(sums, d, load(sums, d) * shrink)
    added, least = load(weight_sums, row * WIDTH), splat(-now)
    for i in range(at, at + KEYS, WIDTH):
        weight = exp2(fma(load(scores, i), scale, least))
        store_rounded(weights, i, weight)
        added = added + weight
    store(weight_sums, row * WIDTH, added)
