"""Rotary position embedding on the CPU."""

from numba import float32
from torch import Tensor

from icarus_kernels.cpu_kernel import CPUKernel, arguments_of, at_address, my_share, narrow, threads_for, widen
from icarus_kernels.cpu_lanes import WIDTH, load, store

_HEADS, _COS, _SIN, _ROWS, _NUM_HEADS, _HALF, _ROW_STRIDE, _HEAD_STRIDE = range(8)
"""Where the kernel finds what in its arguments: the order of `rotate_cpu`."""


def rotate_cpu(heads: Tensor, cos: Tensor, sin: Tensor) -> None:
    """As `rotate`."""
    rows, num_heads, dim = heads.shape
    addresses = (heads.data_ptr(), cos.data_ptr(), sin.data_ptr())
    shape = (rows, num_heads, dim // 2, heads.stride(0), heads.stride(1))
    _ROTATE(heads.dtype, threads_for(heads.numel()), *addresses, *shape)


def _rotate(p):
    a = arguments_of(p)
    heads, cos, sin = at_address(a[_HEADS], p), at_address(a[_COS], float32), at_address(a[_SIN], float32)
    rows, num_heads, half, row_stride, head_stride = a[_ROWS], a[_NUM_HEADS], a[_HALF], a[_ROW_STRIDE], a[_HEAD_STRIDE]
    begin, end = my_share(rows)
    whole = half // WIDTH * WIDTH
    for row in range(begin, end):
        for head in range(num_heads):
            at = row * row_stride + head * head_stride
            for i in range(0, whole, WIDTH):
                first, second = load(heads, at + i), load(heads, at + half + i)
                c, s = load(cos, row * half + i), load(sin, row * half + i)
                store(heads, at + i, first * c - second * s)
                store(heads, at + half + i, second * c + first * s)
            for i in range(whole, half):
                first, second = widen(heads[at + i]), widen(heads[at + half + i])
                c, s = cos[row * half + i], sin[row * half + i]
                heads[at + i] = narrow(first * c - second * s, heads)
                heads[at + half + i] = narrow(second * c + first * s, heads)


_ROTATE = CPUKernel(_rotate)
