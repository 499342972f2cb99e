"""Paged attention of chunks on a CPU that multiplies bfloat16: an online softmax over tiles of queries and keys.

K and V are laid out once for all queries, as `multiply_tile` wants them; then each thread takes tiles of queries, and
walks over the keys that they see, as in FlashAttention (https://arxiv.org/abs/2205.14135).
"""

import math

import numpy as np
import torch
from numba import float32, int32, uint16
from torch import Tensor

from icarus_kernels.attention_rows import AttentionRows
from icarus_kernels.cpu_dot_tiles import COLUMNS, ROWS, has_dot_tiles, multiply_tile, store_rounded
from icarus_kernels.cpu_kernel import CPUKernel, arguments_of, at_address, inner, my_share, thread_number, total_threads
from icarus_kernels.cpu_lanes import WIDTH, exp2, fma, larger, largest, load, splat, store, total

_KEYS = COLUMNS
"""Keys that are scored at once."""
_QUERIES = 8 * ROWS
"""Queries of a tile at least, heads of a group side by side; as many as fit."""
_LOWEST, _ZERO, _LOG2_E = np.float32(-1e30), np.float32(0), math.log2(math.e)


def takes_chunks(query: Tensor, pages: Tensor) -> bool:
    """Whether `paged_prefill_cpu` is for these tensors on this processor."""
    whole_lines = query.shape[2] % COLUMNS == 0 and pages.stride(4) == 1 and query.stride(2) == 1
    return whole_lines and query.dtype == torch.bfloat16 and has_dot_tiles()


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
    num_blocks = -(-(end_key - first_key) // _KEYS)
    num_threads = torch.get_num_threads()
    packed = torch.empty(2, kv_heads, num_blocks, _KEYS * head_dim, dtype=torch.bfloat16)
    # Of a thread: for each query its weighted sums of values, its scores, its sums of weights and its largest score in
    # float32; then itself and its weights in bfloat16.
    thread_size = queries * (head_dim + _KEYS + WIDTH + 1) + queries * (head_dim + _KEYS) // 2
    workspace = torch.empty(num_threads, -(-thread_size // WIDTH) * WIDTH)
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
    """A thread's part of the keys, in blocks of `_KEYS`. What is behind the last key is 0.

    Keys: [pairs of dimensions, keys of the block, 2]. Values: [dimensions / COLUMNS, pairs of keys, COLUMNS, 2].
    """
    a = arguments_of(p)
    pages, packed, table = at_address(a[1], p), at_address(a[3], p), at_address(a[7], int32)
    first_key, end_key, kv_heads, head_dim, block_size = a[10], a[11], a[14], a[15], a[16]
    block_stride, kv_stride, token_stride, head_stride, num_blocks = a[19], a[20], a[21], a[22], a[24]
    size = _KEYS * head_dim
    begin, end = my_share(kv_heads * num_blocks)
    for i in range(begin, end):
        head, block = i // num_blocks, i % num_blocks
        keys, values = i * size, (kv_heads * num_blocks + i) * size
        for token in range(_KEYS):
            key = first_key + block * _KEYS + token
            if key < end_key:
                at = table[key // block_size] * block_stride + key % block_size * token_stride + head * head_stride
                for d in range(0, head_dim, 2):
                    to = keys + (d // 2 * _KEYS + token) * 2
                    packed[to], packed[to + 1] = pages[at + d], pages[at + d + 1]
                for d in range(head_dim):
                    packed[values + _value_at(token, d)] = pages[at + kv_stride + d]
            else:
                for d in range(0, head_dim, 2):
                    to = keys + (d // 2 * _KEYS + token) * 2
                    packed[to], packed[to + 1] = 0, 0
                for d in range(head_dim):
                    packed[values + _value_at(token, d)] = 0


@inner
def _value_at(token, d):
    """Where in its block a value's dimension is."""
    return d // COLUMNS * (_KEYS * COLUMNS) + (token // 2 * COLUMNS + d % COLUMNS) * 2 + token % 2


def _attend(p):
    """A thread's tiles of queries: every so many, because later ones see more keys."""
    a = arguments_of(p)
    positions = at_address(a[6], int32)
    num_entries, entries, first_key, window = a[8], a[9], a[10], a[12]
    heads, kv_heads, head_dim, queries, num_blocks = a[13], a[14], a[15], a[23], a[24]
    group, size = heads // kv_heads, _KEYS * head_dim
    own = a[4] + 4 * thread_number() * a[25]
    sums = at_address(own, float32)
    scores = at_address(own + 4 * queries * head_dim, float32)
    weight_sums = at_address(own + 4 * queries * (head_dim + _KEYS), float32)
    best = at_address(own + 4 * queries * (head_dim + _KEYS + WIDTH), float32)
    q = at_address(own + _queries_at(queries, head_dim), uint16)
    weights = at_address(own + _queries_at(queries, head_dim) + 2 * queries * head_dim, uint16)
    packed = a[3]

    num_tiles = (num_entries + entries - 1) // entries
    for i in range(thread_number(), num_tiles * kv_heads, total_threads()):
        tile, head = i // kv_heads, i % kv_heads
        start = tile * entries
        count = min(entries, num_entries - start)
        _begin_tile(a, p, start, count, head, q, weights, sums, weight_sums, best)
        low, high = positions[start], positions[start + count - 1]
        begin = 0 if window == 0 else (max(low - window + 1, first_key) - first_key) // _KEYS
        end = (high - first_key) // _KEYS + 1
        for block in range(begin, end):
            at = 2 * (head * num_blocks + block) * size
            keys = at_address(packed + at, uint16)
            values = packed + 2 * kv_heads * num_blocks * size + at
            for row in range(0, queries, ROWS):
                multiply_tile(scores, row * _KEYS, _KEYS, q, row * head_dim, head_dim, keys, head_dim // 2, 0)
            key = first_key + block * _KEYS
            if key + _KEYS > low + 1 or (window > 0 and key <= high - window):
                _hide(scores, positions, start, count, group, key, window)
            for row in range(count * group):
                _weigh(scores, row, weights, sums, weight_sums, best, head_dim)
            for column in range(0, head_dim, COLUMNS):
                panel = at_address(values + 2 * column * _KEYS, uint16)
                for row in range(0, queries, ROWS):
                    multiply_tile(
                        sums, row * head_dim + column, head_dim, weights, row * _KEYS, _KEYS, panel, _KEYS // 2, 1
                    )
        _end_tile(a, p, start, count, head, sums, weight_sums)


@inner
def _queries_at(queries, head_dim):
    """Where in a thread's workspace its queries begin, in bytes."""
    return 4 * queries * (head_dim + _KEYS + WIDTH + 1)


@inner
def _begin_tile(a, p, start, count, head, q, weights, sums, weight_sums, best):
    """The tile's queries, [entries, heads of the group]; those that fill it up are 0, and so are their weights."""
    query, row_ids = at_address(a[0], p), at_address(a[5], int32)
    group, head_dim, row_stride, head_stride, queries = a[13] // a[14], a[15], a[17], a[18], a[23]
    for entry in range(count):
        for member in range(group):
            at = row_ids[start + entry] * row_stride + (head * group + member) * head_stride
            to = (entry * group + member) * head_dim
            for d in range(head_dim):
                q[to + d] = query[at + d]
    for at in range(count * group * head_dim, queries * head_dim):
        q[at] = 0
    for at in range(count * group * _KEYS, queries * _KEYS):
        weights[at] = 0
    for i in range(queries):
        best[i] = _LOWEST
        store(weight_sums, i * WIDTH, splat(_ZERO))
    for at in range(queries * head_dim):
        sums[at] = _ZERO


@inner
def _hide(scores, positions, start, count, group, key, window):
    """Scores of keys that a row does not see."""
    for entry in range(count):
        position = positions[start + entry]
        seen = min(max(position + 1 - key, 0), _KEYS)
        first = min(max(position + 1 - window - key, 0), _KEYS) if window > 0 else 0
        for row in range(entry * group, (entry + 1) * group):
            for i in range(first):
                scores[row * _KEYS + i] = _LOWEST
            for i in range(seen, _KEYS):
                scores[row * _KEYS + i] = _LOWEST


@inner
def _weigh(scores, row, weights, sums, weight_sums, best, head_dim):
    """A row's scores become weights relative to the largest so far; what it has is scaled to the same."""
    scale = splat(float32(_LOG2_E / math.sqrt(head_dim)))
    at = row * _KEYS
    high = load(scores, at)
    for i in range(WIDTH, _KEYS, WIDTH):
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
    for i in range(at, at + _KEYS, WIDTH):
        weight = exp2(fma(load(scores, i), scale, least))
        store_rounded(weights, i, weight)
        added = added + weight
    store(weight_sums, row * WIDTH, added)


@inner
def _end_tile(a, p, start, count, head, sums, weight_sums):
    output, row_ids = at_address(a[2], p), at_address(a[5], int32)
    heads, group, head_dim = a[13], a[13] // a[14], a[15]
    for entry in range(count):
        for member in range(group):
            row = entry * group + member
            share = splat(float32(1.0) / total(load(weight_sums, row * WIDTH)))
            to = (row_ids[start + entry] * heads + head * group + member) * head_dim
            for d in range(0, head_dim, WIDTH):
                store(output, to + d, load(sums, row * head_dim + d) * share)


_DTYPES = (torch.bfloat16,) if has_dot_tiles() else ()
_PACK, _ATTEND = CPUKernel(_pack, _DTYPES), CPUKernel(_attend, _DTYPES)
