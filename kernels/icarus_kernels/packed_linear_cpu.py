"""A linear layer of few rows on a CPU that multiplies bfloat16. It reads the weight where oneDNN has packed it.

With few rows reading the weight is all the work, and oneDNN's own product reads it at half of what memory gives.
"""

import ctypes

import torch
from numba import uint16
from torch import Tensor

from icarus_kernels.cpu_dot_tiles import COLUMNS, ROWS, has_dot_tiles, multiply_rows
from icarus_kernels.cpu_kernel import CPUKernel, arguments_of, at_address, my_share, threads_for

FEW = 64
"""Rows up to which it is faster than oneDNN. With more, arithmetic is all the work, and the two are equal."""


_X, _PANELS, _OUTPUT, _BIAS, _ROWS, _SIZE_IN, _SIZE_OUT, _X_STRIDE = range(8)
"""Where the kernel finds what in its arguments: the order of `few_rows_linear_cpu`."""


def panels_of(packed: Tensor, weight: Tensor) -> int | None:
    """The address of oneDNN's copy of `weight` [out, in], if it is laid out as the kernel reads it. Good for as long as
    `packed` is kept.

    That is [out / COLUMNS, in / 2, COLUMNS, 2]. The layout is oneDNN's own business, so the copy itself is looked at.
    """
    out, size = weight.shape
    if not has_dot_tiles() or weight.dtype != torch.bfloat16 or out % COLUMNS or size % 2:
        return None
    address = torch.ops.mkldnn.data_ptr(packed)
    if torch.ops.mkldnn._nbytes(packed) != weight.nbytes:
        return None
    copy = torch.frombuffer((ctypes.c_int16 * weight.numel()).from_address(address), dtype=torch.int16)
    panels = weight.view(torch.int16).reshape(out // COLUMNS, COLUMNS, size // 2, 2).transpose(1, 2)
    return address if torch.equal(copy.view_as(panels), panels) else None


def few_rows_linear_cpu(x: Tensor, panels: int, bias: Tensor | None, out: int) -> Tensor:
    """x [rows, in] -> [rows, out]; bias [out]; `panels` from `panels_of`. Rows lie whole, an even stride apart."""
    rows, size = x.shape
    output = torch.empty(rows, out, dtype=x.dtype)
    _MULTIPLY(
        x.dtype,
        threads_for(out * size),
        *(x.data_ptr(), panels, output.data_ptr(), 0 if bias is None else bias.data_ptr()),
        *(rows, size, out, x.stride(0)),
    )
    return output


def _multiply(p):
    a = arguments_of(p)
    x, output, bias = at_address(a[_X], p), at_address(a[_OUTPUT], p), at_address(a[_BIAS], p)
    rows, size, out, stride = a[_ROWS], a[_SIZE_IN], a[_SIZE_OUT], a[_X_STRIDE]
    is_biased = 0 if a[_BIAS] == 0 else 1
    num_tiles = (rows + ROWS - 1) // ROWS
    begin, end = my_share(out // COLUMNS)
    for panel in range(begin, end):
        column = panel * COLUMNS
        right = at_address(a[_PANELS] + 2 * column * size, uint16)
        for tile in range(num_tiles):
            # Rows are shared out evenly: eight are four and four.
            row, next_row = rows * tile // num_tiles, rows * (tile + 1) // num_tiles
            multiply_rows(
                *(output, row * out + column, out, next_row - row),
                *(x, row * stride, stride, right, size // 2, bias, column, is_biased),
            )


_MULTIPLY = CPUKernel(_multiply, (torch.bfloat16,) if has_dot_tiles() else ())
