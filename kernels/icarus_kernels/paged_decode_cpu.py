"""Paged attention of decode on any CPU, in float32: K and V are read where they lie, once for all rows and heads that
share them."""

import math

import numpy as np
from numba import float32, int32
from torch import Tensor

from icarus_kernels.attention_rows import AttentionRows
from icarus_kernels.attention_slots import (
    BLOCK_SIZE,
    BLOCK_STRIDE,
    BLOCK_TABLES,
    HEAD_DIM,
    HEAD_STRIDE,
    HEADER,
    HEADS,
    KV_HEADS,
    KV_STRIDE,
    NUM_DECODES,
    PAGES,
    STARTS,
    TABLE_STRIDE,
    TOKEN_STRIDE,
    attend_in_shares,
    gather_queries,
    keys_of,
    leave_slot,
    my_part,
    sums_at,
    take_slot,
)
from icarus_kernels.cpu_kernel import CPUKernel, arguments_of, at_address, inner
from icarus_kernels.cpu_lanes import WIDTH, exp, fma, largest, load, splat, store, store_totals, total

_TILE = WIDTH
"""Keys that are scored at once: one vector of scores a query."""
_LOWEST, _ZERO = np.float32(-1e30), np.float32(0)


def paged_decode_cpu(query: Tensor, pages: Tensor, rows: AttentionRows, window: int | None, output: Tensor) -> None:
    """As `paged_attention`, into `output`; of the sequences of decode."""
    (heads, head_dim), kv_heads = query.shape[1:], pages.shape[3]
    # The queries, their scores, a tile of keys or values.
    scratch_size = 2 * heads * (head_dim + _TILE) + _TILE * kv_heads * head_dim
    attend_in_shares(_ATTEND, scratch_size, query, pages, rows, window, output)


def _attend(p):
    a = arguments_of(p)
    begin, end = my_part(a)
    for s in range(a[NUM_DECODES]):
        first, count = keys_of(a, s)
        low, high = max(begin, 0), min(end, count)
        if low < high:
            slot, scratch = take_slot(a, s, low)
            _attend_keys(a, p, scratch, s, first + low, first + high, slot)
            leave_slot(a, p, slot, high - low == count)
        begin, end = begin - count, end - count


@inner
def _attend_keys(a, p, scratch, s, begin, end, slot):
    """Puts into the slot what the rows of sequence `s` have of the keys [begin, end)."""
    pages, starts = at_address(a[PAGES], p), at_address(a[STARTS], int32)
    table = at_address(a[BLOCK_TABLES] + 4 * s * a[TABLE_STRIDE], int32)
    heads, kv_heads, head_dim = a[HEADS], a[KV_HEADS], a[HEAD_DIM]
    q = at_address(scratch, float32)
    scores = at_address(scratch + 8 * heads * head_dim, float32)
    tile = at_address(scratch + 8 * heads * (head_dim + _TILE), float32)
    num_rows = starts[s + 1] - starts[s]
    group, line = num_rows * (heads // kv_heads), kv_heads * head_dim
    _clear(slot, num_rows * heads, heads, head_dim)
    gather_queries(a, p, s, group, q)
    for key in range(begin, end, _TILE):
        count = min(_TILE, end - key)
        _load_tile(pages, a, table, key, count, 0, tile)
        for head in range(kv_heads):
            i = head * group
            _score(q, tile, i, i + group, head * head_dim, line, count, head_dim, scores)
        _weigh(scores, slot, num_rows * heads, count, heads, head_dim)
        _load_tile(pages, a, table, key, count, a[KV_STRIDE], tile)
        for head in range(kv_heads):
            i = head * group
            _add_values(scores, tile, slot, i, i + group, head * head_dim, line, count, heads, head_dim)


@inner
def _clear(slot, n, heads, head_dim):
    for i in range(n):
        slot[HEADER + i] = _LOWEST
        slot[HEADER + 2 * heads + i] = 0
    for i in range(n * head_dim):
        slot[sums_at(heads) + i] = 0


@inner
def _copy(source, at, target, to, size):
    for d in range(0, size, WIDTH):
        store(target, to + d, load(source, at + d))


@inner
def _load_tile(pages, a, table, key, count, offset, tile):
    """Keys or values [key, key + count) of all heads as float32, one token a line."""
    kv_heads, head_dim, block_size = a[KV_HEADS], a[HEAD_DIM], a[BLOCK_SIZE]
    block_stride, token_stride, head_stride = a[BLOCK_STRIDE], a[TOKEN_STRIDE], a[HEAD_STRIDE]
    page, token = key // block_size, key % block_size
    line = kv_heads * head_dim
    for i in range(count):
        at = table[page] * block_stride + token * token_stride + offset
        for head in range(kv_heads):
            _copy(pages, at + head * head_stride, tile, i * line + head * head_dim, head_dim)
        token += 1
        if token == block_size:
            page, token = page + 1, 0


@inner
def _score(q, tile, begin, end, column, line, count, head_dim, scores):
    """Queries [begin, end) times each key of a head. Two queries and four keys at a time: what is loaded serves more
    than one product, and no sum waits for the one before it."""
    for i in range(begin, end):
        store(scores, i * _TILE, splat(_LOWEST))
    i = begin
    while i < end:
        # Without a partner a query is its own.
        j = min(i + 1, end - 1)
        key = 0
        while key + 4 <= count:
            a, b, c, d = splat(_ZERO), splat(_ZERO), splat(_ZERO), splat(_ZERO)
            e, f, g, h = splat(_ZERO), splat(_ZERO), splat(_ZERO), splat(_ZERO)
            for at in range(0, head_dim, WIDTH):
                x, other, y = load(q, i * head_dim + at), load(q, j * head_dim + at), key * line + column + at
                k0, k1 = load(tile, y), load(tile, y + line)
                k2, k3 = load(tile, y + 2 * line), load(tile, y + 3 * line)
                a, b, c, d = fma(x, k0, a), fma(x, k1, b), fma(x, k2, c), fma(x, k3, d)
                e, f, g, h = fma(other, k0, e), fma(other, k1, f), fma(other, k2, g), fma(other, k3, h)
            store_totals(scores, i * _TILE + key, a, b, c, d)
            store_totals(scores, j * _TILE + key, e, f, g, h)
            key += 4
        while key < count:
            a, e = splat(_ZERO), splat(_ZERO)
            for at in range(0, head_dim, WIDTH):
                k0 = load(tile, key * line + column + at)
                a, e = fma(load(q, i * head_dim + at), k0, a), fma(load(q, j * head_dim + at), k0, e)
            scores[i * _TILE + key], scores[j * _TILE + key] = total(a), total(e)
            key += 1
        i += 2


@inner
def _weigh(scores, slot, n, count, heads, head_dim):
    """Scores become weights relative to the largest so far; what the slot has is scaled to the same."""
    scale = splat(float32(1.0 / math.sqrt(head_dim)))
    for i in range(n):
        scaled = load(scores, i * _TILE) * scale
        before = slot[HEADER + i]
        best = max(before, largest(scaled))
        weights = exp(scaled - splat(best))
        store(scores, i * _TILE, weights)
        for key in range(count, _TILE):
            scores[i * _TILE + key] = 0
        weight_sum = HEADER + 2 * heads + i
        if best > before:
            slot[HEADER + i] = best
            shrink = math.exp(before - best)
            slot[weight_sum] *= shrink
            at = sums_at(heads) + i * head_dim
            for d in range(0, head_dim, WIDTH):
                store(slot, at + d, load(slot, at + d) * splat(float32(shrink)))
        slot[weight_sum] += total(load(scores, i * _TILE))


@inner
def _add_values(weights, tile, slot, begin, end, column, line, count, heads, head_dim):
    """Adds the weighted values of a head to the sums of queries [begin, end), two queries at a time."""
    sums = sums_at(heads)
    i = begin
    while i < end:
        d = 0
        while i + 1 < end and d + 4 * WIDTH <= head_dim:
            at, to = sums + i * head_dim + d, sums + (i + 1) * head_dim + d
            a0, a1, a2, a3 = _load4(slot, at)
            b0, b1, b2, b3 = _load4(slot, to)
            for key in range(count):
                x, other = splat(weights[i * _TILE + key]), splat(weights[(i + 1) * _TILE + key])
                v0, v1, v2, v3 = _load4(tile, key * line + column + d)
                a0, a1, a2, a3 = fma(x, v0, a0), fma(x, v1, a1), fma(x, v2, a2), fma(x, v3, a3)
                b0, b1, b2, b3 = fma(other, v0, b0), fma(other, v1, b1), fma(other, v2, b2), fma(other, v3, b3)
            _store4(slot, at, a0, a1, a2, a3)
            _store4(slot, to, b0, b1, b2, b3)
            d += 4 * WIDTH
        for one in range(i, min(i + 2, end)):
            _add_values_of_one(weights, tile, slot, one, sums + one * head_dim, column, line, count, d, head_dim)
        i += 2


@inner
def _add_values_of_one(weights, tile, slot, i, at, column, line, count, d, head_dim):
    """As `_add_values`, of query i, from dimension d on."""
    while d + 4 * WIDTH <= head_dim:
        a0, a1, a2, a3 = _load4(slot, at + d)
        for key in range(count):
            x = splat(weights[i * _TILE + key])
            v0, v1, v2, v3 = _load4(tile, key * line + column + d)
            a0, a1, a2, a3 = fma(x, v0, a0), fma(x, v1, a1), fma(x, v2, a2), fma(x, v3, a3)
        _store4(slot, at + d, a0, a1, a2, a3)
        d += 4 * WIDTH
    while d < head_dim:
        a0 = load(slot, at + d)
        for key in range(count):
            a0 = fma(splat(weights[i * _TILE + key]), load(tile, key * line + column + d), a0)
        store(slot, at + d, a0)
        d += WIDTH


@inner
def _load4(source, at):
    return load(source, at), load(source, at + WIDTH), load(source, at + 2 * WIDTH), load(source, at + 3 * WIDTH)


@inner
def _store4(target, at, a, b, c, d):
    store(target, at, a)
    store(target, at + WIDTH, b)
    store(target, at + 2 * WIDTH, c)
    store(target, at + 3 * WIDTH, d)


_ATTEND = CPUKernel(_attend)
