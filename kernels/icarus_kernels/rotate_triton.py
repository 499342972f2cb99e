"""Rotary position embedding on a GPU."""

# pyright: reportCallIssue=false

import triton
import triton.language as tl
from torch import Tensor

from icarus_kernels.triton_launch import next_power_of_2


@triton.jit
def rotate_kernel(
    heads,
    cos,
    sin,
    num_heads,
    half,
    row_stride,
    head_stride,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """All heads of one row."""
    row = tl.program_id(0).to(tl.int64)
    dims = tl.arange(0, BLOCK_D)
    is_dim = dims < half
    c = tl.load(cos + row * half + dims, mask=is_dim, other=0.0)[None, :]
    s = tl.load(sin + row * half + dims, mask=is_dim, other=0.0)[None, :]
    index = tl.arange(0, BLOCK_H)[:, None]
    mask = (index < num_heads) & is_dim[None, :]
    target = heads + row * row_stride + index * head_stride + dims[None, :]
    first = tl.load(target, mask=mask, other=0.0)
    second = tl.load(target + half, mask=mask, other=0.0)
    a, b = first.to(tl.float32), second.to(tl.float32)
    tl.store(target, (a * c - b * s).to(first.dtype), mask=mask)
    tl.store(target + half, (b * c + a * s).to(first.dtype), mask=mask)


def rotate_triton(heads: Tensor, cos: Tensor, sin: Tensor) -> None:
    """As `rotate`."""
    rows, num_heads, head_dim = heads.shape
    if rows == 0:
        return
    rotate_kernel[(rows,)](
        heads,
        cos,
        sin,
        num_heads,
        head_dim // 2,
        heads.stride(0),
        heads.stride(1),
        BLOCK_H=next_power_of_2(num_heads),
        BLOCK_D=next_power_of_2(head_dim // 2),
        num_warps=4,
    )
