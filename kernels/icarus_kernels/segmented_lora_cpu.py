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
"""Numbers: how far ahead of what it uses the kernel asks for matrices."""
_TASK = 8
"""int64 of a task: six, as `_list_tasks` writes them, and what makes a cache line of it."""

(
    _OUTPUT, _X, _BOUNDS, _ENTRIES, _SCRATCH,
    _NUM_SEGMENTS, _NUM_LAYERS, _NUM_MODULES, _LAYER, _SCRATCH_SIZE, _TASKS_SIZE,
    _SIZE_IN, _X_STRIDE, _OUTPUT_STRIDE, _SIZE_OUT, _NUM_COLUMNS,
    _COLUMNS,
) = range(17)  # fmt: skip
"""Where the kernel finds what in its arguments: the order of `add_few_rows`, whose `columns` begin at _COLUMNS."""


def add_few_rows(output: Tensor, x: Tensor, rows: LoraRows, layer: int, columns: Sequence[Columns]) -> None:
    """As `add_segmented_lora`, each thread some of the rows: for decode, where a segment has few."""
    num_threads = torch.get_num_threads()
    num_segments, num_layers, num_modules, _ = rows.entries.shape
    # Of each thread, in float32 and whole cache lines: its tasks, and of a row the delta and x @ A.T.
    tasks_size = 2 * _TASK * min(len(x), num_segments * rows.max_rows) * len(columns)
    scratch_size = tasks_size + -(-(output.shape[1] + rows.max_rank) // WIDTH) * WIDTH
    scratch = torch.empty(num_threads * scratch_size)
    _ADD(
        x.dtype,
        num_threads,
        *(output.data_ptr(), x.data_ptr(), rows.bounds.data_ptr(), rows.entries.data_ptr(), scratch.data_ptr()),
        *(num_segments, num_layers, num_modules, layer, scratch_size, tasks_size),
        *(x.shape[1], x.stride(0), output.stride(0), output.shape[1], len(columns)),
        *itertools.chain.from_iterable(columns),
    )


def _add(p):
    a = arguments_of(p)
    output, x = at_address(a[_OUTPUT], p), at_address(a[_X], p)
    size, x_stride, output_stride = a[_SIZE_IN], a[_X_STRIDE], a[_OUTPUT_STRIDE]
    own = a[_SCRATCH] + 4 * thread_number() * a[_SCRATCH_SIZE]
    delta = at_address(own + 4 * a[_TASKS_SIZE], float32)
    shrunk = at_address(own + 4 * (a[_TASKS_SIZE] + a[_SIZE_OUT]), float32)
    count = _list_tasks(a, own)
    for i in range(count):
        task = at_address(own + 8 * _TASK * i, int64)
        row, column, size_out, rank, matrix_a, matrix_b = task[0], task[1], task[2], task[3], task[4], task[5]
        next_a = task[_TASK + 4] if i + 1 < count else matrix_a
        _shrink(x, row * x_stride, at_address(matrix_a, p), rank, size, at_address(matrix_b, p), shrunk)
        to = row * output_stride + column
        _expand(output, to, at_address(matrix_b, p), rank, size_out, at_address(next_a, p), shrunk, delta)


@inner
def _list_tasks(a, address):
    """The calling thread's rows times the modules, in the order in which they are done: how many. Each is its row and
    first column of the output, how many columns, the rank, and where A and B are."""
    bounds, num_segments = at_address(a[_BOUNDS], int32), a[_NUM_SEGMENTS]
    num_layers, num_modules, layer = a[_NUM_LAYERS], a[_NUM_MODULES], a[_LAYER]
    num_rows = 0
    for s in range(num_segments):
        num_rows += bounds[2 * s + 1] - bounds[2 * s]
    begin, end = my_share(num_rows)
    first, count = 0, 0
    for s in range(num_segments):
        # The thread's part of the segment's rows.
        low = max(begin - first, 0) + bounds[2 * s]
        high = min(end - first, bounds[2 * s + 1] - bounds[2 * s]) + bounds[2 * s]
        first += bounds[2 * s + 1] - bounds[2 * s]
        for c in range(a[_NUM_COLUMNS]):
            module, column, last = a[_COLUMNS + 3 * c], a[_COLUMNS + 3 * c + 1], a[_COLUMNS + 3 * c + 2]
            entry = at_address(a[_ENTRIES] + 24 * ((s * num_layers + layer) * num_modules + module), int64)
            for row in range(low, high if entry[2] > 0 else low):
                task = at_address(address + 8 * _TASK * count, int64)
                task[0], task[1], task[2] = row, column, last - column
                task[3], task[4], task[5] = entry[2], entry[0], entry[1]
                count += 1
    return count


@inner
def _shrink(x, at, matrix, rank, size, following, shrunk):
    """x @ A.T of one row; four of A's rows at a time share x."""
    whole, r = size // WIDTH * WIDTH, 0
    while r < rank:
        many = r + 4 <= rank
        a, b, c, d = splat(float32(0)), splat(float32(0)), splat(float32(0)), splat(float32(0))
        for i in range(0, whole, WIDTH):
            lanes, y = load(x, at + i), r * size + i
            a = fma(lanes, load(matrix, y), a)
            if many:
                _fetch(matrix, r * size + 4 * i, rank * size, following)
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
def _expand(output, at, matrix, rank, size, following, shrunk, delta):
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
            _fetch(matrix, r * size + 4 * i, rank * size, following)
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


@inner
def _fetch(matrix, at, end, following):
    """While 64 numbers of a matrix from `at` on are used, asks for as many that come later: in it, or past its `end` in
    the one that is used next. For numbers of 16 bits and matrices of more than _AHEAD; others get less of what they
    need."""
    ahead = at + _AHEAD
    if ahead < end:
        prefetch(matrix, ahead)
        prefetch(matrix, ahead + 32)
    else:
        prefetch(following, ahead - end)
        prefetch(following, ahead - end + 32)


_ADD = CPUKernel(_add)
