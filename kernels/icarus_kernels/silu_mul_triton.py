"""The gate of a gated MLP on a GPU."""

# pyright: reportCallIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from icarus_kernels.triton_launch import cdiv

_BLOCK = 1024


@triton.jit
def silu_mul_kernel(gate_up, output, size, BLOCK: tl.constexpr):
    """BLOCK columns of one row."""
    row = tl.program_id(0).to(tl.int64)
    index = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = index < size
    source = gate_up + row * 2 * size + index
    gate = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(source + size, mask=mask, other=0.0).to(tl.float32)
    gated = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(output + row * size + index, gated.to(output.dtype.element_ty), mask=mask)


def silu_mul_triton(gate_up: Tensor) -> Tensor:
    """As `silu_mul`."""
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    output = torch.empty(rows, size, dtype=gate_up.dtype, device=gate_up.device)
    if rows:
        silu_mul_kernel[(rows, cdiv(size, _BLOCK))](gate_up, output, size, BLOCK=_BLOCK, num_warps=4)
    return output
