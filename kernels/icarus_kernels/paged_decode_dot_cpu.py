"""Paged attention of decode on a CPU that multiplies bfloat16: K and V are read where they lie, once for all rows and
heads that share them, and an online softmax goes over tiles of keys."""

import math

import torch
from numba import float32, int32, int64, uint16
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
from icarus_kernels.cpu_dot_tiles import (
    COLUMNS,
    ROWS,
    has_dot_tiles,
    multiply_tile,
    multiply_tile_and_fetch,
)
from icarus_kernels.cpu_kernel import CPUKernel, arguments_of, at_address, inner
from icarus_kernels.cpu_lanes import WIDTH, load, store, total
from icarus_kernels.kv_tiles import KEYS, find_lines, pack_keys, pack_values
from icarus_kernels.online_softmax import LOWEST, begin_rows, rows_at, rows_size, weigh


def paged_decode_dot_cpu(query: Tensor, pages: Tensor, rows: AttentionRows, window: int | None, output: Tensor) -> None:
    """As `paged_attention`, into `output`; of the sequences of decode. For bfloat16 and whole lines of COLUMNS."""
    (heads, head_dim), kv_heads = query.shape[1:], pages.shape[3]
    most = kv_heads * -(-2 * heads // kv_heads // ROWS) * ROWS
    # A tile of keys or values in bfloat16; where its keys lie, and the next one's, in int64.
    tile_size = KEYS * head_dim // 2 + 2 * 2 * KEYS
    attend_in_shares(_ATTEND, tile_size + rows_size(most, head_dim), query, pages, rows, window, output)


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
    heads, kv_heads, head_dim, block_size = a[HEADS], a[KV_HEADS], a[HEAD_DIM], a[BLOCK_SIZE]
    block_stride, kv_stride, token_stride, head_stride = a[BLOCK_STRIDE], a[KV_STRIDE], a[TOKEN_STRIDE], a[HEAD_STRIDE]
    num_queries = (starts[s + 1] - starts[s]) * (heads // kv_heads)
    padded = (num_queries + ROWS - 1) // ROWS * ROWS
    tile, lines_at = at_address(scratch, uint16), scratch + 2 * KEYS * head_dim
    lines, next_lines = at_address(lines_at, int64), at_address(lines_at + 8 * KEYS, int64)
    # Queries that fill up a tile of them are 0, and so are their weights.
    q, scores, weights, sums, weight_sums, best = rows_at(lines_at + 16 * KEYS, kv_heads * padded, head_dim)

    begin_rows(kv_heads * padded, q, weights, sums, weight_sums, best, head_dim)
    gather_queries(a, p, s, padded, q)
    find_lines(lines, table, begin, min(KEYS, end - begin), block_size, block_stride, token_stride)
    for key in range(begin, end, KEYS):
        count = min(KEYS, end - key)
        ahead = min(key + KEYS, end - 1)
        find_lines(next_lines, table, ahead, min(KEYS, end - ahead), block_size, block_stride, token_stride)
        for head in range(kv_heads):
            top, keys_at, values_at = head * padded, head * head_stride, head * head_stride + kv_stride
            # While a tile is multiplied, the next one is fetched.
            pack_keys(tile, 0, pages, lines, keys_at, head_dim)
            multiply_tile_and_fetch(
                *(scores, top * KEYS, KEYS, q, top * head_dim, head_dim, tile, head_dim // 2, 0),
                *(pages, next_lines, keys_at),
            )
            for row in range(top + ROWS, top + padded, ROWS):
                multiply_tile(scores, row * KEYS, KEYS, q, row * head_dim, head_dim, tile, head_dim // 2, 0)
            for row in range(top, top + num_queries):
                for i in range(count, KEYS):
                    scores[row * KEYS + i] = LOWEST
                weigh(scores, row, weights, sums, weight_sums, best, head_dim)
            pack_values(tile, 0, pages, lines, values_at, head_dim)
            for column in range(0, head_dim, COLUMNS):
                panel = at_address(scratch + 2 * column * KEYS, uint16)
                to = top * head_dim + column
                multiply_tile_and_fetch(
                    *(sums, to, head_dim, weights, top * KEYS, KEYS, panel, KEYS // 2, 1),
                    *(pages, next_lines, values_at + column),
                )
                for row in range(top + ROWS, top + padded, ROWS):
                    to = row * head_dim + column
                    multiply_tile(sums, to, head_dim, weights, row * KEYS, KEYS, panel, KEYS // 2, 1)
        lines, next_lines = next_lines, lines
    _leave(slot, sums, weight_sums, best, num_queries, padded, heads, kv_heads, head_dim)


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
