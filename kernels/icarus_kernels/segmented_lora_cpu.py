"""LoRA deltas of several adapters on the CPU: one kernel for all segments and modules of a linear."""

import itertools
from collections.abc import Sequence

import torch
from numba import float32, int32, int64
from torch import Tensor

from icarus_kernels.cpu_kernel import (
    CPUKernel,
    arguments_of,
    at_address,
    inner,
    my_share,
    narrow,
    thread_number,
    widen,
)
from icarus_kernels.cpu_lanes import WIDTH, fma, load, prefetch, splat, store, total
from icarus_kernels.lora_rows import Columns, LoraRows

_AHEAD = 4096
"""Numbers: how far ahead of what it uses the kernel asks for a matrix."""


def add_few_rows(output: Tensor, x: Tensor, rows: LoraRows, layer: int, columns: Sequence[Columns]) -> None:
    """As `add_segmented_lora`, each thread some of the rows: for decode, where a segment has few."""
    num_threads = torch.get_num_threads()
    num_segments, num_layers, num_modules, _ = rows.entries.shape
    # Of each thread: a row's x @ A.T, and its delta.
    scratch_size = rows.max_rank + output.shape[1]
    scratch = torch.empty(num_threads * scratch_size)
    _ADD(
        x.dtype,
        num_threads,
        *(output.data_ptr(), x.data_ptr(), rows.bounds.data_ptr(), rows.entries.data_ptr(), scratch.data_ptr()),
        *(num_segments, num_layers, num_modules, layer, scratch_size, rows.max_rank),
        *(x.shape[1], x.stride(0), output.stride(0)),
        len(columns),
        *itertools.chain.from_iterable(columns),
    )


def _add(p):
    a = arguments_of(p)
    output, x, bounds, entries = at_address(a[0], p), at_address(a[1], p), at_address(a[2], int32), a[3]
    shrunk = at_address(a[4] + 4 * thread_number() * a[9], float32)
    delta = at_address(a[4] + 4 * (thread_number() * a[9] + a[10]), float32)
    num_segments, num_layers, num_modules, layer = a[5], a[6], a[7], a[8]
    size, x_stride, output_stride, num_columns = a[11], a[12], a[13], a[14]
    num_rows = 0
    for s in range(num_segments):
        num_rows += bounds[2 * s + 1] - bounds[2 * s]
    begin, end = my_share(num_rows)
    first = 0
    for s in range(num_segments):
        # The thread's part of the segment's rows.
        low = max(begin - first, 0) + bounds[2 * s]
        high = min(end - first, bounds[2 * s + 1] - bounds[2 * s]) + bounds[2 * s]
        first += bounds[2 * s + 1] - bounds[2 * s]
        for c in range(num_columns):
            module, column, last = a[15 + 3 * c], a[16 + 3 * c], a[17 + 3 * c]
            entry = at_address(entries + 24 * ((s * num_layers + layer) * num_modules + module), int64)
            rank, size_out = entry[2], last - column
            for row in range(low, high if rank > 0 else low):
                _shrink(x, row * x_stride, at_address(entry[0], p), rank, size, shrunk)
                _expand(output, row * output_stride + column, at_address(entry[1], p), rank, size_out, shrunk, delta)


@inner
def _shrink(x, at, matrix, rank, size, shrunk):
    """x @ A.T of one row; four of A's rows at a time share x."""
    whole, r = size // WIDTH * WIDTH, 0
    while r < rank:
        many = r + 4 <= rank
        a, b, c, d = splat(float32(0)), splat(float32(0)), splat(float32(0)), splat(float32(0))
        for i in range(0, whole, WIDTH):
            lanes, y = load(x, at + i), r * size + i
            _fetch(matrix, r * size + 4 * i)
            a = fma(lanes, load(matrix, y), a)
            if many:
                b = fma(lanes, load(matrix, y + size), b)
                c = fma(lanes, load(matrix, y + 2 * size), c)
                d = fma(lanes, load(matrix, y + 3 * size), d)
        shrunk[r] = total(a)
        if many:
            shrunk[r + 1], shrunk[r + 2], shrunk[r + 3] = total(b), total(c), total(d)
        taken = 4 if many else 1
        for k in range(r, r + taken):
            for i in range(whole, size):
                shrunk[k] += widen(x[at + i]) * widen(matrix[k * size + i])
        r += taken


@inner
def _fetch(matrix, at):
    """Of a matrix of which 64 numbers from `at` on are used, in whatever order, asks for those that come later."""
    prefetch(matrix, at + _AHEAD)
    prefetch(matrix, at + _AHEAD + 32)


@inner
def _expand(output, at, matrix, rank, size, shrunk, delta):
    """output += shrunk @ B.T; `matrix` is B.T [rank, size]. Four of its rows at a time, each from end to end: the
    processor fetches ahead along a few lines, not along sixteen."""
    whole = size // WIDTH * WIDTH
    for i in range(0, whole, WIDTH):
        store(delta, i, splat(float32(0)))
    r = 0
    while r + 4 <= rank:
        a, b, c, d = splat(shrunk[r]), splat(shrunk[r + 1]), splat(shrunk[r + 2]), splat(shrunk[r + 3])
        for i in range(0, whole, WIDTH):
            y = r * size + i
            _fetch(matrix, r * size + 4 * i)
            first = fma(a, load(matrix, y), fma(b, load(matrix, y + size), load(delta, i)))
            store(delta, i, fma(c, load(matrix, y + 2 * size), fma(d, load(matrix, y + 3 * size), first)))
        r += 4
    while r < rank:
        for i in range(0, whole, WIDTH):
            store(delta, i, fma(splat(shrunk[r]), load(matrix, r * size + i), load(delta, i)))
        r += 1
    for i in range(0, whole, WIDTH):
        store(output, at + i, load(output, at + i) + load(delta, i))
    for i in range(whole, size):
        rest = float32(0)
        for k in range(rank):
            rest += shrunk[k] * widen(matrix[k * size + i])
        output[at + i] = narrow(widen(output[at + i]) + rest, output)


_ADD = CPUKernel(_add)
