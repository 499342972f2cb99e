"""A row of scores becomes weights, a tile of keys at a time (as in FlashAttention, https://arxiv.org/abs/2205.14135)."""

import math

import numpy as np
from numba import float32, uint16

from icarus_kernels.cpu_dot_tiles import store_rounded
from icarus_kernels.cpu_kernel import at_address, inner
from icarus_kernels.cpu_lanes import WIDTH, exp2, fma, larger, largest, load, splat, store
from icarus_kernels.kv_tiles import KEYS

LOWEST, _ZERO = np.float32(-1e30), np.float32(0)
"""LOWEST: the score of a key that a row does not see."""
_NO_SCORE = np.float32(-1e20)
"""Above LOWEST, so that keys which are not seen weigh nothing before there is a score too."""
_LOG2_E = math.log2(math.e)


def rows_size(num_rows: int, head_dim: int) -> int:
    """float32 of what `rows_at` finds."""
    best_size = -(-num_rows // WIDTH) * WIDTH
    return num_rows * (head_dim + KEYS + WIDTH) + num_rows * (head_dim + KEYS) // 2 + best_size


@inner
def rows_at(address, num_rows, head_dim):
    """What is kept of rows of queries while their keys go by, whole cache lines each:

    q            [rows, head_dim] bfloat16
    scores       [rows, KEYS] float32, of one tile
    weights      [rows, KEYS] bfloat16
    sums         [rows, head_dim] float32: weighted sums of values
    weight_sums  [rows, WIDTH] float32; their total counts
    best         [rows] float32: the largest score, times log2(e) / sqrt(head_dim)
    """
    scores_at = address + 4 * num_rows * head_dim
    weight_sums_at = scores_at + 4 * num_rows * KEYS
    q_at = weight_sums_at + 4 * num_rows * WIDTH
    weights_at = q_at + 2 * num_rows * head_dim
    best_at = weights_at + 2 * num_rows * KEYS
    return (
        at_address(q_at, uint16),
        at_address(scores_at, float32),
        at_address(weights_at, uint16),
        at_address(address, float32),
        at_address(weight_sums_at, float32),
        at_address(best_at, float32),
    )


@inner
def begin_rows(num_rows, q, weights, sums, weight_sums, best, head_dim):
    """Nothing has been weighed yet. Queries and weights are 0 where nobody sets them."""
    for row in range(num_rows):
        best[row] = _NO_SCORE
        store(weight_sums, row * WIDTH, splat(_ZERO))
    for at in range(0, num_rows * head_dim, WIDTH):
        store(sums, at, splat(_ZERO))
        store(q, at, splat(_ZERO))
    for at in range(0, num_rows * KEYS, WIDTH):
        store(weights, at, splat(_ZERO))


@inner
def weigh(scores, row, weights, sums, weight_sums, best, head_dim):
    """A row's scores become weights relative to the largest so far; what it has is scaled to the same."""
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
