"""Paged attention of chunks on a CPU that multiplies bfloat16: an online softmax over tiles of queries and keys.

K and V are laid out once for all queries, as `multiply_tile` wants them; then each thread takes tiles of queries, and
walks over the keys that they see, as in FlashAttention (https://arxiv.org/abs/2205.14135).
"""

import torch
from numba import float32, int32, int64, uint16
from torch import Tensor

from icarus_kernels.attention_rows import AttentionRows
from icarus_kernels.cpu_dot_tiles import COLUMNS, ROWS, has_dot_tiles, multiply_tile
from icarus_kernels.cpu_kernel import CPUKernel, arguments_of, at_address, inner, my_share, thread_number, total_threads
from icarus_kernels.cpu_lanes import WIDTH, load, splat, store, total
from icarus_kernels.kv_tiles import KEYS, find_lines, pack_keys, pack_values
from icarus_kernels.online_softmax import LOWEST, begin_rows, rows_at, rows_size, weigh

_QUERIES = 8 * ROWS
"""Queries of a tile at least, heads of a group side by side; as many as fit."""

(
    _QUERY, _PAGES, _OUTPUT, _PACKED, _WORKSPACE,
    _ROW_IDS, _POSITIONS, _BLOCK_TABLE,
    _NUM_ENTRIES, _TILE_ENTRIES, _FIRST_KEY, _END_KEY, _WINDOW,
    _HEADS, _KV_HEADS, _HEAD_DIM, _BLOCK_SIZE,
    _QUERY_ROW_STRIDE, _QUERY_HEAD_STRIDE, _BLOCK_STRIDE, _KV_STRIDE, _TOKEN_STRIDE, _HEAD_STRIDE,
    _TILE_QUERIES, _NUM_BLOCKS, _THREAD_SIZE,
) = range(26)  # fmt: skip
"""Where a kernel finds what in its arguments: the order of `_attend_sequence`."""


def paged_prefill_cpu(
    query: Tensor, pages: Tensor, rows: AttentionRows, window: int | None, output: Tensor, first: int = 0
) -> None:
    """As `paged_attention`, into `output`; of the sequences from `first` on."""
    at = "paged_prefill_cpu", first
    if at not in rows.derived:
        rows.derived[at] = rows.starts.tolist(), rows.positions.tolist()
    starts, positions = rows.derived[at]
    for s in range(first, rows.num_sequences):
        begin, end = starts[s], starts[s + 1]
        first_key = 0 if window is None else max(0, positions[begin] - window + 1)
        _attend_sequence(query, pages, rows, window, output, s, begin, end, first_key, positions[end - 1] + 1)


def _attend_sequence(
    query: Tensor,
    pages: Tensor,
    rows: AttentionRows,
    window: int | None,
    output: Tensor,
    sequence: int,
    begin: int,
    end: int,
    first_key: int,
    end_key: int,
) -> None:
    heads, head_dim = query.shape[1:]
    _, _, block_size, kv_heads, _ = pages.shape
    group = heads // kv_heads
    entries = max(1, _QUERIES // group)
    queries = -(-entries * group // ROWS) * ROWS
    num_blocks = -(-(end_key - first_key) // KEYS)
    num_threads = torch.get_num_threads()
    packed = torch.empty(2, kv_heads, num_blocks, KEYS * head_dim, dtype=torch.bfloat16)
    workspace = torch.empty(num_threads, rows_size(queries, head_dim))
    arguments = (
        *(tensor.data_ptr() for tensor in (query, pages, output, packed, workspace)),
        *(rows.row_ids[begin:].data_ptr(), rows.positions[begin:].data_ptr(), rows.block_tables[sequence].data_ptr()),
        *(end - begin, entries, first_key, end_key, window or 0),
        *(heads, kv_heads, head_dim, block_size),
        *(*query.stride()[:2], *pages.stride()[:4]),
        *(queries, num_blocks, workspace.stride(0)),
    )
    _PACK(query.dtype, num_threads, *arguments)
    _ATTEND(query.dtype, num_threads, *arguments)


def _pack(p):
    """A thread's part of the keys, in tiles."""
    a = arguments_of(p)
    pages, packed, table = at_address(a[_PAGES], p), at_address(a[_PACKED], p), at_address(a[_BLOCK_TABLE], int32)
    first_key, end_key, num_blocks = a[_FIRST_KEY], a[_END_KEY], a[_NUM_BLOCKS]
    kv_heads, head_dim, block_size = a[_KV_HEADS], a[_HEAD_DIM], a[_BLOCK_SIZE]
    block_stride, kv_stride = a[_BLOCK_STRIDE], a[_KV_STRIDE]
    token_stride, head_stride = a[_TOKEN_STRIDE], a[_HEAD_STRIDE]
    lines = at_address(a[_WORKSPACE] + 4 * thread_number() * a[_THREAD_SIZE], int64)
    size = KEYS * head_dim
    begin, end = my_share(kv_heads * num_blocks)
    for i in range(begin, end):
        head, key = i // num_blocks, first_key + i % num_blocks * KEYS
        find_lines(lines, table, key, min(KEYS, end_key - key), block_size, block_stride, token_stride)
        pack_keys(packed, i * size, pages, lines, head * head_stride, head_dim)
        values = (kv_heads * num_blocks + i) * size
        pack_values(packed, values, pages, lines, head * head_stride + kv_stride, head_dim)


def _attend(p):
    """A thread's tiles of queries: every so many, because later ones see more keys."""
    a = arguments_of(p)
    positions = at_address(a[_POSITIONS], int32)
    num_entries, entries, first_key, window = a[_NUM_ENTRIES], a[_TILE_ENTRIES], a[_FIRST_KEY], a[_WINDOW]
    heads, kv_heads, head_dim = a[_HEADS], a[_KV_HEADS], a[_HEAD_DIM]
    queries, num_blocks = a[_TILE_QUERIES], a[_NUM_BLOCKS]
    group, size = heads // kv_heads, KEYS * head_dim
    own = a[_WORKSPACE] + 4 * thread_number() * a[_THREAD_SIZE]
    q, scores, weights, sums, weight_sums, best = rows_at(own, queries, head_dim)
    packed = a[_PACKED]

    num_tiles = (num_entries + entries - 1) // entries
    for i in range(thread_number(), num_tiles * kv_heads, total_threads()):
        tile, head = i // kv_heads, i % kv_heads
        start = tile * entries
        count = min(entries, num_entries - start)
        _begin_tile(a, p, start, count, head, q, weights, sums, weight_sums, best)
        low, high = positions[start], positions[start + count - 1]
        begin = 0 if window == 0 else (max(low - window + 1, first_key) - first_key) // KEYS
        end = (high - first_key) // KEYS + 1
        for block in range(begin, end):
            at = 2 * (head * num_blocks + block) * size
            keys = at_address(packed + at, uint16)
            values = packed + 2 * kv_heads * num_blocks * size + at
            for row in range(0, queries, ROWS):
                multiply_tile(scores, row * KEYS, KEYS, q, row * head_dim, head_dim, keys, head_dim // 2, 0)
            key = first_key + block * KEYS
            if key + KEYS > low + 1 or (window > 0 and key <= high - window):
                _hide(scores, positions, start, count, group, key, window)
            for row in range(count * group):
                weigh(scores, row, weights, sums, weight_sums, best, head_dim)
            for column in range(0, head_dim, COLUMNS):
                panel = at_address(values + 2 * column * KEYS, uint16)
                for row in range(0, queries, ROWS):
                    multiply_tile(
                        sums, row * head_dim + column, head_dim, weights, row * KEYS, KEYS, panel, KEYS // 2, 1
                    )
        _end_tile(a, p, start, count, head, sums, weight_sums)


@inner
def _begin_tile(a, p, start, count, head, q, weights, sums, weight_sums, best):
    """The tile's queries, [entries, heads of the group]; those that fill it up are 0, and so are their weights."""
    query, row_ids = at_address(a[_QUERY], p), at_address(a[_ROW_IDS], int32)
    group, head_dim, queries = a[_HEADS] // a[_KV_HEADS], a[_HEAD_DIM], a[_TILE_QUERIES]
    row_stride, head_stride = a[_QUERY_ROW_STRIDE], a[_QUERY_HEAD_STRIDE]
    begin_rows(queries, q, weights, sums, weight_sums, best, head_dim)
    for entry in range(count):
        for member in range(group):
            at = row_ids[start + entry] * row_stride + (head * group + member) * head_stride
            to = (entry * group + member) * head_dim
            for d in range(head_dim):
                q[to + d] = query[at + d]


@inner
def _hide(scores, positions, start, count, group, key, window):
    """Scores of keys that a row does not see."""
    for entry in range(count):
        position = positions[start + entry]
        seen = min(max(position + 1 - key, 0), KEYS)
        first = min(max(position + 1 - window - key, 0), KEYS) if window > 0 else 0
        for row in range(entry * group, (entry + 1) * group):
            for i in range(first):
                scores[row * KEYS + i] = LOWEST
            for i in range(seen, KEYS):
                scores[row * KEYS + i] = LOWEST


@inner
def _end_tile(a, p, start, count, head, sums, weight_sums):
    output, row_ids = at_address(a[_OUTPUT], p), at_address(a[_ROW_IDS], int32)
    heads, group, head_dim = a[_HEADS], a[_HEADS] // a[_KV_HEADS], a[_HEAD_DIM]
    for entry in range(count):
        for member in range(group):
            row = entry * group + member
            share = splat(float32(1.0) / total(load(weight_sums, row * WIDTH)))
            to = (row_ids[start + entry] * heads + head * group + member) * head_dim
            for d in range(0, head_dim, WIDTH):
                store(output, to + d, load(sums, row * head_dim + d) * share)


_DTYPES = (torch.bfloat16,) if has_dot_tiles() else ()
_PACK, _ATTEND = CPUKernel(_pack, _DTYPES), CPUKernel(_attend, _DTYPES)
