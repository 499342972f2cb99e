"""LoRA deltas on a GPU: x goes down to the rank (shrink), then up into the output (expand).

Both kernels find an adapter's matrices by address, so that one captured graph serves whichever adapters a batch has.
"""

# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from icarus_kernels.lora_rows import Columns, LoraRows
from icarus_kernels.triton_launch import cdiv, count_processors, next_power_of_2

_PROGRAMS_PER_PROCESSOR = 2
_MIN_SPLIT_INPUTS = 256
_MAX_SPLITS = 8
_TRITON_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def _pick(values, index):
    """values[index] of a tuple, where the index is not known before the kernel runs."""
    picked = values[0]
    for i in tl.static_range(1, len(values)):
        picked = tl.where(index == i, values[i], picked)
    return picked


@triton.jit(do_not_specialize=["first_entry", "num_rows", "num_splits"])
def shrink_kernel(
    x,
    partials,
    bounds,
    entries,
    modules,
    first_entry,
    segment_entries,
    num_inputs,
    num_rows,
    max_rank,
    num_splits,
    x_row_stride,
    DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """partials[split, module, row, rank] = x[row, inputs of the split] @ A.T"""
    tile, split = tl.program_id(0) // num_splits, tl.program_id(0) % num_splits
    segment = tl.program_id(2)
    row_end = tl.load(bounds + 2 * segment + 1)
    row_start = tl.load(bounds + 2 * segment) + tile * BLOCK_M
    if row_start >= row_end:
        return
    entry = entries + 3 * (segment.to(tl.int64) * segment_entries + first_entry + _pick(modules, tl.program_id(1)))
    a = tl.multiple_of(tl.load(entry).to(tl.pointer_type(DTYPE)), 16)
    rank = tl.load(entry + 2).to(tl.int32)

    rows = row_start + tl.arange(0, BLOCK_M)
    is_row = (rows < row_end)[:, None]
    x_rows = x + rows.to(tl.int64)[:, None] * x_row_stride
    share = tl.cdiv(tl.cdiv(num_inputs, num_splits), BLOCK_K) * BLOCK_K
    input_end = tl.minimum((split + 1) * share, num_inputs)
    target = (split.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * num_rows
    target = partials + (target + rows)[:, None] * max_rank
    for rank_start in range(0, rank, BLOCK_R):
        dims = rank_start + tl.arange(0, BLOCK_R)
        is_dim = dims < rank
        acc = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
        for start in range(split * share, input_end, BLOCK_K):
            inputs = start + tl.arange(0, BLOCK_K)
            is_input = (inputs < input_end)[None, :]
            x_tile = tl.load(x_rows + inputs[None, :], mask=is_row & is_input, other=0.0)
            offsets = dims.to(tl.int64)[:, None] * num_inputs + inputs[None, :]
            a_tile = tl.load(a + offsets, mask=is_dim[:, None] & is_input, other=0.0)
            acc = tl.dot(x_tile, tl.trans(a_tile), acc, input_precision="ieee")
        tl.store(target + dims[None, :], acc, mask=is_row & is_dim[None, :])


@triton.jit(do_not_specialize=["first_entry", "num_modules", "num_rows"])
def expand_kernel(
    output,
    partials,
    bounds,
    entries,
    modules,
    column_starts,
    column_ends,
    first_entry,
    segment_entries,
    num_modules,
    num_rows,
    max_rank,
    output_row_stride,
    NUM_SPLITS: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """output[row, columns of the module] += sum of partials[:, module, row] @ B.T"""
    tile, which = tl.program_id(1) // num_modules, tl.program_id(1) % num_modules
    segment = tl.program_id(2)
    row_end = tl.load(bounds + 2 * segment + 1)
    row_start = tl.load(bounds + 2 * segment) + tile * BLOCK_M
    column_start = _pick(column_starts, which)
    num_outputs = _pick(column_ends, which) - column_start
    outputs = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    if row_start >= row_end or tl.program_id(0) * BLOCK_N >= num_outputs:
        return
    entry = entries + 3 * (segment.to(tl.int64) * segment_entries + first_entry + _pick(modules, which))
    b = tl.multiple_of(tl.load(entry + 1).to(tl.pointer_type(DTYPE)), 16)
    rank = tl.load(entry + 2).to(tl.int32)
    if rank == 0:
        return

    rows = row_start + tl.arange(0, BLOCK_M)
    is_row = (rows < row_end)[:, None]
    is_output = (outputs < num_outputs)[None, :]
    split_stride = num_modules.to(tl.int64) * num_rows * max_rank
    source = partials + (which.to(tl.int64) * num_rows + rows)[:, None] * max_rank
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for rank_start in range(0, rank, BLOCK_R):
        dims = rank_start + tl.arange(0, BLOCK_R)
        is_dim = dims < rank
        shrunk = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
        for split in tl.static_range(NUM_SPLITS):
            shrunk += tl.load(source + split * split_stride + dims[None, :], mask=is_row & is_dim[None, :], other=0.0)
        offsets = dims.to(tl.int64)[:, None] * num_outputs + outputs[None, :]
        b_tile = tl.load(b + offsets, mask=is_dim[:, None] & is_output, other=0.0)
        acc = tl.dot(shrunk.to(DTYPE), b_tile, acc, input_precision="ieee")
    target = output + rows.to(tl.int64)[:, None] * output_row_stride + column_start + outputs[None, :]
    before = tl.load(target, mask=is_row & is_output)
    tl.store(target, (before.to(tl.float32) + acc).to(before.dtype), mask=is_row & is_output)


def add_segmented_lora_triton(
    output: Tensor, x: Tensor, rows: LoraRows, layer: int, columns: Sequence[Columns], num_splits: int | None = None
) -> None:
    """As `add_segmented_lora`; A and B start at multiples of 16 bytes. The way down is cut into `num_splits` parts, a
    power of two; None: as many as suit the device."""
    num_segments, _, layer_entries, _ = rows.entries.shape
    block_m = 16 if rows.max_rows <= 32 else 64
    tiles = cdiv(rows.max_rows, block_m)
    # Rounded up, so that a batch with another largest rank takes the same compiled kernels.
    max_rank = next_power_of_2(rows.max_rank, 16)
    block_r = min(max_rank, 64)
    num_inputs, modules = x.shape[1], tuple(c.module for c in columns)
    if num_splits is None:
        num_splits = count_splits(num_inputs, tiles * len(columns) * num_segments, count_processors(x.device))
    partials = torch.empty(num_splits, len(columns), len(x), max_rank, dtype=torch.float32, device=x.device)
    shrink_kernel[(tiles * num_splits, len(columns), num_segments)](
        x,
        partials,
        rows.bounds,
        rows.entries,
        modules,
        layer * layer_entries,
        rows.entries.stride(0) // 3,
        num_inputs,
        len(x),
        max_rank,
        num_splits,
        x.stride(0),
        DTYPE=_TRITON_TYPES[x.dtype],
        BLOCK_M=block_m,
        BLOCK_K=(128 if block_m == 16 else 64) * 2 // x.element_size(),
        BLOCK_R=block_r,
        num_warps=4,
        num_stages=3,
    )
    block_n = 128 if block_m == 16 and x.element_size() < 4 else 64
    blocks = cdiv(max(c.end - c.start for c in columns), block_n)
    expand_kernel[(blocks, tiles * len(columns), num_segments)](
        output,
        partials,
        rows.bounds,
        rows.entries,
        modules,
        tuple(c.start for c in columns),
        tuple(c.end for c in columns),
        layer * layer_entries,
        rows.entries.stride(0) // 3,
        len(columns),
        len(x),
        max_rank,
        output.stride(0),
        NUM_SPLITS=num_splits,
        DTYPE=_TRITON_TYPES[x.dtype],
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_R=block_r,
        num_warps=4,
        num_stages=1,
    )


def count_splits(num_inputs: int, programs: int, processors: int) -> int:
    """Over how many programs the inputs of a row go, where one split of all would take `programs`: a power of two, for
    each is a kernel of its own."""
    wanted = min(cdiv(_PROGRAMS_PER_PROCESSOR * processors, programs), cdiv(num_inputs, _MIN_SPLIT_INPUTS))
    return min(next_power_of_2(wanted), _MAX_SPLITS)
