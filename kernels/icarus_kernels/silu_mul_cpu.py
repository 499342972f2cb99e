"""The gate of a gated MLP on the CPU."""

import math

import torch
from numba import float32
from torch import Tensor

from icarus_kernels.cpu_kernel import CPUKernel, arguments_of, at_address, my_share, narrow, threads_for, widen
from icarus_kernels.cpu_lanes import WIDTH, exp, load, splat, store

_GATE_UP, _OUTPUT, _ROWS, _SIZE = range(4)
"""Where the kernel finds what in its arguments: the order of `silu_mul_cpu`."""


def silu_mul_cpu(gate_up: Tensor) -> Tensor:
    """As `silu_mul`."""
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    output = torch.empty(rows, size, dtype=gate_up.dtype)
    _SILU_MUL(gate_up.dtype, threads_for(output.numel()), gate_up.data_ptr(), output.data_ptr(), rows, size)
    return output


def _silu_mul(p):
    a = arguments_of(p)
    gate_up, output, rows, size = at_address(a[_GATE_UP], p), at_address(a[_OUTPUT], p), a[_ROWS], a[_SIZE]
    begin, end = my_share(rows)
    whole = size // WIDTH * WIDTH
    one, zero = splat(float32(1)), splat(float32(0))
    for row in range(begin, end):
        gate, up, to = 2 * row * size, (2 * row + 1) * size, row * size
        for d in range(0, whole, WIDTH):
            x = load(gate_up, gate + d)
            store(output, to + d, x / (one + exp(zero - x)) * load(gate_up, up + d))
        for d in range(whole, size):
            x = widen(gate_up[gate + d])
            value = x / (float32(1) + float32(math.exp(-x))) * widen(gate_up[up + d])
            output[to + d] = narrow(value, output)


_SILU_MUL = CPUKernel(_silu_mul)
