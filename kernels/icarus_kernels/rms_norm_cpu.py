"""RMSNorm on the CPU: one pass that adds and squares, one that scales."""

import math

import torch
from numba import float32
from torch import Tensor

from icarus_kernels.cpu_kernel import (
    CPUKernel,
    arguments_of,
    as_float,
    at_address,
    float_argument,
    my_share,
    narrow,
    threads_for,
    widen,
)
from icarus_kernels.cpu_lanes import WIDTH, fma, load, splat, store, total

(
    _X, _ADDED, _WEIGHT, _OUTPUT,
    _ROWS, _HEADS, _SIZE, _ROW_STRIDE, _HEAD_STRIDE, _EPS,
) = range(10)  # fmt: skip
"""Where the kernel finds what in its arguments: the order of `rms_norm_cpu`."""


def rms_norm_cpu(x: Tensor, added: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """As `rms_norm` where `added` is None, else as `add_rms_norm`."""
    output = torch.empty_like(x, memory_format=torch.contiguous_format)
    rows, heads, size = x.shape if x.ndim == 3 else (x.shape[0], 1, x.shape[1])
    strides = x.stride()
    _RMS_NORM(
        x.dtype,
        threads_for(rows * heads * size),
        x.data_ptr(),
        0 if added is None else added.data_ptr(),
        weight.data_ptr(),
        output.data_ptr(),
        *(rows, heads, size, strides[0], strides[-2]),
        float_argument(eps),
    )
    return output


def _rms_norm(p):
    a = arguments_of(p)
    x, added = at_address(a[_X], p), at_address(a[_ADDED], p)
    weight, output = at_address(a[_WEIGHT], p), at_address(a[_OUTPUT], p)
    rows, heads, size = a[_ROWS], a[_HEADS], a[_SIZE]
    row_stride, head_stride, eps = a[_ROW_STRIDE], a[_HEAD_STRIDE], as_float(a[_EPS])
    begin, end = my_share(rows)
    whole = size // WIDTH * WIDTH
    for row in range(begin, end):
        for head in range(heads):
            at, to = row * row_stride + head * head_stride, (row * heads + head) * size
            squares = splat(float32(0))
            for d in range(0, whole, WIDTH):
                lanes = load(x, at + d)
                if a[_ADDED] != 0:
                    store(x, at + d, lanes + load(added, at + d))
                    lanes = load(x, at + d)
                squares = fma(lanes, lanes, squares)
            sum_of_squares = total(squares)
            for d in range(whole, size):
                if a[_ADDED] != 0:
                    x[at + d] = narrow(widen(x[at + d]) + widen(added[at + d]), x)
                sum_of_squares += widen(x[at + d]) * widen(x[at + d])
            scale = float32(1) / float32(math.sqrt(sum_of_squares / float32(size) + eps))
            for d in range(0, whole, WIDTH):
                store(output, to + d, load(x, at + d) * splat(scale) * load(weight, d))
            for d in range(whole, size):
                output[to + d] = narrow(widen(x[at + d]) * scale * widen(weight[d]), output)


_RMS_NORM = CPUKernel(_rms_norm)
