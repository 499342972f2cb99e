"""Paged attention of decode on a CPU that multiplies bfloat16: K and V are read where they lie, once for all rows and
heads that share them, and an online softmax goes over tiles of keys."""

import math

import torch
from numba import float32, int32, int64, uint16
from torch import Tensor

from icarus_kernels.attention_rows import AttentionRows
from icarus_kernels.attention_slots import HEADER, attend_in_shares, finish, keys_seen, my_part, sums_at
from icarus_kernels.cpu_dot_tiles import COLUMNS, ROWS, has_dot_tiles, multiply_tile, multiply_tile_and_fetch
from icarus_kernels.cpu_kernel import CPUKernel, arguments_of, at_address, inner, thread_number
from icarus_kernels.cpu_lanes import WIDTH, load, store, total
from icarus_kernels.kv_tiles import KEYS, find_lines, list_cache_lines, pack_keys, pack_values
from icarus_kernels.online_softmax import LOWEST, begin_rows, weigh


def paged_decode_dot_cpu(query: Tensor, pages: Tensor, rows: AttentionRows, window: int | None, output: Tensor) -> None:
    """As `paged_attention`, into `output`; of the sequences of decode. For bfloat16 and whole lines of COLUMNS."""
    (heads, head_dim), kv_heads = query.shape[1:], pages.shape[3]
    most = kv_heads * _padded(2 * heads // kv_heads)
    # For each query its weighted sums of values, its scores, its sums of weights and its largest score in float32; then
    # itself and its weights in bfloat16.
    scratch_size = most * (head_dim + KEYS + WIDTH + 1) + most * (head_dim + KEYS) // 2
    # A tile of keys or values in bfloat16; where its keys lie and the next one's, and that one's cache lines, in int64.
    scratch_size += KEYS * head_dim // 2 + 2 * (2 * KEYS + 2 * head_dim)
    attend_in_shares(_ATTEND, scratch_size, query, pages, rows, window, output)


def _attend(p):
    """A thread's part of the line."""
    a = arguments_of(p)
    pages, output = at_address(a[1], p), at_address(a[2], p)
    row_ids, positions, starts = at_address(a[4], int32), at_address(a[5], int32), at_address(a[6], int32)
    tables, num_decodes, table_width, window = a[7], a[8], a[9], a[10]
    heads, kv_heads, head_dim, slot_size = a[11], a[12], a[13], a[21]
    own = a[3] + 4 * thread_number() * a[22]
    at_address(own, float32)[0] = -1
    at_address(own + 4 * slot_size, float32)[0] = -1
    begin, end = my_part(positions, starts, num_decodes, window)
    here = 0
    for s in range(num_decodes):
        position, num_rows = positions[starts[s]], starts[s + 1] - starts[s]
        span = keys_seen(position, window)
        low, high = max(begin - here, 0), min(end - here, span)
        here += span
        if low >= high:
            continue
        slot = at_address(own + (4 * slot_size if low == 0 else 0), float32)
        slot[0] = s
        first = position + 1 - span
        table = at_address(tables + 4 * s * table_width, int32)
        _attend_keys(a, pages, at_address(a[0], p), own + 8 * slot_size, table, s, first + low, first + high, slot)
        if low == 0 and high == span:
            finish(slot, output, row_ids, starts[s], num_rows, heads, kv_heads, head_dim)
            slot[0] = -1


@inner
def _attend_keys(a, pages, query, scratch, table, s, begin, end, slot):
    """What the rows of sequence `s` have of the keys [begin, end), to the slot."""
    row_ids, starts = at_address(a[4], int32), at_address(a[6], int32)
    heads, kv_heads, head_dim, block_size = a[11], a[12], a[13], a[14]
    block_stride, kv_stride, token_stride, head_stride = a[17], a[18], a[19], a[20]
    num_rows = starts[s + 1] - starts[s]
    num_queries = num_rows * (heads // kv_heads)
    padded = _padded(num_queries)
    most = kv_heads * _padded(2 * heads // kv_heads)
    sums = at_address(scratch, float32)
    scores = at_address(scratch + 4 * most * head_dim, float32)
    weight_sums = at_address(scratch + 4 * most * (head_dim + KEYS), float32)
    best = at_address(scratch + 4 * most * (head_dim + KEYS + WIDTH), float32)
    halves = scratch + 4 * most * (head_dim + KEYS + WIDTH + 1)
    q, weights = at_address(halves, uint16), at_address(halves + 2 * most * head_dim, uint16)
    tile_at = halves + 2 * most * (head_dim + KEYS)
    tile, lines = at_address(tile_at, uint16), at_address(tile_at + 2 * KEYS * head_dim, int64)
    next_lines = at_address(tile_at + 2 * KEYS * head_dim + 8 * KEYS, int64)
    soon = at_address(tile_at + 2 * KEYS * head_dim + 16 * KEYS, int64)

    _gather_queries(query, row_ids, starts[s], num_rows, heads, kv_heads, head_dim, a[15], a[16], padded, q)
    begin_rows(kv_heads * padded, sums, weight_sums, best, head_dim)
    for at in range(kv_heads * padded * KEYS):
        weights[at] = 0
    find_lines(lines, table, begin, min(KEYS, end - begin), block_size, block_stride, token_stride)
    for key in range(begin, end, KEYS):
        count = min(KEYS, end - key)
        ahead = min(key + KEYS, end - 1)
        find_lines(next_lines, table, ahead, min(KEYS, end - ahead), block_size, block_stride, token_stride)
        for head in range(kv_heads):
            top, keys_at, values_at = head * padded, head * head_stride, head * head_stride + kv_stride
            # While a tile is multiplied, the next one is fetched.
            pack_keys(tile, 0, pages, lines, keys_at, head_dim)
            list_cache_lines(soon, next_lines, keys_at, head_dim)
            factors = scores, top * KEYS, KEYS, q, top * head_dim, head_dim, tile, head_dim // 2, 0
            multiply_tile_and_fetch(*factors, pages, soon, 0)
            for row in range(top + ROWS, top + padded, ROWS):
                multiply_tile(scores, row * KEYS, KEYS, q, row * head_dim, head_dim, tile, head_dim // 2, 0)
            for row in range(top, top + num_queries):
                for i in range(count, KEYS):
                    scores[row * KEYS + i] = LOWEST
                weigh(scores, row, weights, sums, weight_sums, best, head_dim)
            pack_values(tile, 0, pages, lines, values_at, head_dim)
            list_cache_lines(soon, next_lines, values_at, head_dim)
            for column in range(0, head_dim, COLUMNS):
                panel = at_address(tile_at + 2 * column * KEYS, uint16)
                to = top * head_dim + column
                added = sums, to, head_dim, weights, top * KEYS, KEYS, panel, KEYS // 2, 1
                multiply_tile_and_fetch(*added, pages, soon, 2 * column)
                for row in range(top + ROWS, top + padded, ROWS):
                    to = row * head_dim + column
                    multiply_tile(sums, to, head_dim, weights, row * KEYS, KEYS, panel, KEYS // 2, 1)
        lines, next_lines = next_lines, lines
    _leave(slot, sums, weight_sums, best, num_queries, padded, heads, kv_heads, head_dim)


@inner
def _padded(num_queries):
    """Whole tiles of queries: those that fill one up are 0, and so are their weights."""
    return (num_queries + ROWS - 1) // ROWS * ROWS


@inner
def _gather_queries(query, row_ids, start, num_rows, heads, kv_heads, head_dim, row_stride, head_stride, padded, q):
    """[rows, heads] -> [KV heads, rows, heads of the group]: all that read the same keys together."""
    group = heads // kv_heads
    for at in range(kv_heads * padded * head_dim):
        q[at] = 0
    for row in range(num_rows):
        for head in range(heads):
            to = (head // group * padded + row * group + head % group) * head_dim
            at = row_ids[start + row] * row_stride + head * head_stride
            for d in range(head_dim):
                q[to + d] = query[at + d]


@inner
def _leave(slot, sums, weight_sums, best, num_queries, padded, heads, kv_heads, head_dim):
    """As the merge wants it: no padding, and largest scores for e instead of 2."""
    for head in range(kv_heads):
        for query in range(num_queries):
            i, row = head * num_queries + query, head * padded + query
            slot[HEADER + i] = best[row] * float32(math.log(2))
            slot[HEADER + 2 * heads + i] = total(load(weight_sums, row * WIDTH))
            for d in range(0, head_dim, WIDTH):
                store(slot, sums_at(heads) + i * head_dim + d, load(sums, row * head_dim + d))


_ATTEND = CPUKernel(_attend, (torch.bfloat16,) if has_dot_tiles() else ())
