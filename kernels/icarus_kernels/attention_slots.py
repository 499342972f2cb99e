"""What threads leave of a sequence whose keys they share out, and how that becomes one output.

The keys of all sequences of decode make one line, and each thread takes an equal part of it. So a part may end within a
sequence: what a thread has of such a one it leaves in a slot, and the slots are merged afterwards (as in FlashDecoding,
https://crfm.stanford.edu/2023/10/12/flashdecoding.html). A thread has two: for the sequence that its part begins
within, and for the others, of which the last may go on elsewhere.

A slot, in float32: its header, which is the sequence (-1: none); for each query the largest score (scaled, for powers
of e); for each the sum of its weights relative to that; for each the weighted sum of values. Queries are in the order
[KV heads, rows, heads of the group]; there is room for two rows.
"""

import math

import torch
from numba import float32, int32
from torch import Tensor

from icarus_kernels.attention_rows import AttentionRows
from icarus_kernels.cpu_kernel import (
    CPUKernel,
    arguments_of,
    at_address,
    inner,
    my_share,
    thread_number,
    threads_for,
    total_threads,
)
from icarus_kernels.cpu_lanes import WIDTH, load, splat, store

HEADER = 1

(
    QUERY, PAGES, OUTPUT, WORKSPACE,
    ROW_IDS, POSITIONS, STARTS, BLOCK_TABLES,
    NUM_DECODES, TABLE_STRIDE, WINDOW,
    HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE,
    QUERY_ROW_STRIDE, QUERY_HEAD_STRIDE, BLOCK_STRIDE, KV_STRIDE, TOKEN_STRIDE, HEAD_STRIDE,
    SLOT_SIZE, THREAD_SIZE, NUM_THREADS,
) = range(24)  # fmt: skip
"""Where a kernel finds what in its arguments: the order of `attend_in_shares`."""


def attend_in_shares(
    attend: CPUKernel,
    scratch_size: int,
    query: Tensor,
    pages: Tensor,
    rows: AttentionRows,
    window: int | None,
    output: Tensor,
) -> None:
    """Runs `attend`, which has two slots and then `scratch_size` float32 for itself, over the sequences of decode."""
    heads, head_dim = query.shape[1:]
    _, _, block_size, kv_heads, _ = pages.shape
    num_threads = threads_for(rows.num_decodes * rows.max_keys * kv_heads * head_dim)
    slot_size = sums_at.py_func(heads) + 2 * heads * head_dim
    thread_size = 2 * slot_size + -(-scratch_size // WIDTH) * WIDTH
    workspace = torch.empty(num_threads * thread_size)
    arguments = (
        *(tensor.data_ptr() for tensor in (query, pages, output, workspace)),
        *(tensor.data_ptr() for tensor in (rows.row_ids, rows.positions, rows.starts, rows.block_tables)),
        *(rows.num_decodes, rows.block_tables.shape[1], window or 0),
        *(heads, kv_heads, head_dim, block_size),
        *(*query.stride()[:2], *pages.stride()[:4]),
        *(slot_size, thread_size, num_threads),
    )
    attend(query.dtype, num_threads, *arguments)
    if num_threads > 1:
        _MERGE(query.dtype, 1, *arguments)


@inner
def my_part(a):
    """The calling thread's keys [begin, end) of the line. Clears its slots."""
    positions, starts = at_address(a[POSITIONS], int32), at_address(a[STARTS], int32)
    # OpenMP may give fewer threads than were asked for: nobody fills their slots.
    for thread in range(thread_number(), a[NUM_THREADS], total_threads()):
        for i in range(2):
            at_address(a[WORKSPACE] + 4 * (thread * a[THREAD_SIZE] + i * a[SLOT_SIZE]), float32)[0] = -1
    length = 0
    for s in range(a[NUM_DECODES]):
        length += _keys_seen(positions[starts[s]], a[WINDOW])
    return my_share(length)


@inner
def keys_of(a, s):
    """The first key that the rows of sequence `s` see, and how many they see."""
    position = at_address(a[POSITIONS], int32)[at_address(a[STARTS], int32)[s]]
    count = _keys_seen(position, a[WINDOW])
    return position + 1 - count, count


@inner
def _keys_seen(position, window):
    return min(position + 1, window) if window > 0 else position + 1


@inner
def take_slot(a, s, low):
    """(a slot for sequence `s`, the address of the thread's scratch). `low`: which of the keys that its rows see is the
    first of the thread's part."""
    own = a[WORKSPACE] + 4 * thread_number() * a[THREAD_SIZE]
    slot = at_address(own + (4 * a[SLOT_SIZE] if low == 0 else 0), float32)
    slot[0] = s
    return slot, own + 8 * a[SLOT_SIZE]


@inner
def leave_slot(a, p, slot, is_whole):
    """`is_whole`: nobody else has keys of the slot's sequence, so its output is there."""
    if is_whole:
        _finish(a, p, slot)
        slot[0] = -1


@inner
def gather_queries(a, p, s, line, q):
    """Of sequence `s`: [rows, heads] -> q [KV heads, line, head_dim], so that all that read the same keys lie together.
    A line is rows times the heads of the group, or longer."""
    query, row_ids, starts = at_address(a[QUERY], p), at_address(a[ROW_IDS], int32), at_address(a[STARTS], int32)
    heads, head_dim, row_stride, head_stride = a[HEADS], a[HEAD_DIM], a[QUERY_ROW_STRIDE], a[QUERY_HEAD_STRIDE]
    group = heads // a[KV_HEADS]
    for row in range(starts[s + 1] - starts[s]):
        for head in range(heads):
            to = (head // group * line + row * group + head % group) * head_dim
            at = row_ids[starts[s] + row] * row_stride + head * head_stride
            for d in range(0, head_dim, WIDTH):
                store(q, to + d, load(query, at + d))


@inner
def sums_at(heads):
    """Where in a slot the weighted sums begin: whole vectors lie in one cache line each."""
    return (HEADER + 4 * heads + WIDTH - 1) // WIDTH * WIDTH


@inner
def _finish(a, p, slot):
    """The slot's weighted sums over its sums of weights, to the output."""
    output, row_ids, starts = at_address(a[OUTPUT], p), at_address(a[ROW_IDS], int32), at_address(a[STARTS], int32)
    s, heads, head_dim = int(slot[0]), a[HEADS], a[HEAD_DIM]
    group, num_rows = heads // a[KV_HEADS], starts[s + 1] - starts[s]
    for row in range(num_rows):
        for head in range(heads):
            i = (head // group * num_rows + row) * group + head % group
            share = splat(float32(1.0) / slot[HEADER + 2 * heads + i])
            for d in range(0, head_dim, WIDTH):
                value = load(slot, sums_at(heads) + i * head_dim + d) * share
                store(output, (row_ids[starts[s] + row] * heads + head) * head_dim + d, value)


def _merge(p):
    """Brings together the slots of a sequence whose keys went to several threads; one thread."""
    a = arguments_of(p)
    workspace, starts = a[WORKSPACE], at_address(a[STARTS], int32)
    heads, head_dim, num_threads = a[HEADS], a[HEAD_DIM], a[NUM_THREADS]
    held = at_address(workspace, float32)
    sequence = -1
    for i in range(2 * num_threads):
        # In the line's order: what a thread has of its first sequence, then what it has of its last.
        slot = at_address(workspace + 4 * (i // 2 * a[THREAD_SIZE] + i % 2 * a[SLOT_SIZE]), float32)
        s = int(slot[0])
        if s < 0:
            continue
        if s == sequence:
            _join(held, slot, (starts[s + 1] - starts[s]) * heads, heads, head_dim)
            continue
        if sequence >= 0:
            _finish(a, p, held)
        held, sequence = slot, s
    if sequence >= 0:
        _finish(a, p, held)


@inner
def _join(held, slot, n, heads, head_dim):
    for i in range(n):
        best = max(held[HEADER + i], slot[HEADER + i])
        mine, other = math.exp(held[HEADER + i] - best), math.exp(slot[HEADER + i] - best)
        held[HEADER + i] = best
        weight_sum = HEADER + 2 * heads + i
        held[weight_sum] = mine * held[weight_sum] + other * slot[weight_sum]
        for d in range(sums_at(heads) + i * head_dim, sums_at(heads) + (i + 1) * head_dim):
            held[d] = mine * held[d] + other * slot[d]


_MERGE = CPUKernel(_merge)
