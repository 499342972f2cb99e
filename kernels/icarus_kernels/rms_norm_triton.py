"""RMSNorm on a GPU."""

# pyright: reportCallIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from icarus_kernels.triton_launch import next_power_of_2


@triton.jit
def norm_kernel(
    x,
    addend,
    weight,
    output,
    size,
    eps,
    row_stride,
    head_stride,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row, or one head of it."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    index = tl.arange(0, BLOCK)
    mask = index < size
    source = x + row * row_stride + head * head_stride + index
    target = (row * tl.num_programs(1) + head) * size + index
    value = tl.load(source, mask=mask, other=0.0)
    if ADD:
        value = (value.to(tl.float32) + tl.load(addend + target, mask=mask, other=0.0).to(tl.float32)).to(value.dtype)
        tl.store(source, value, mask=mask)
    wide = value.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide) / size + eps)
    scaled = wide * scale * tl.load(weight + index, mask=mask, other=0.0).to(tl.float32)
    tl.store(output + target, scaled.to(output.dtype.element_ty), mask=mask)


def rms_norm_triton(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `rms_norm`."""
    heads = x if x.ndim == 3 else x.view(-1, 1, x.shape[-1])
    return _launch(heads, None, weight, eps).view(x.shape)


def add_rms_norm_triton(residual: Tensor, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `add_rms_norm`."""
    return _launch(residual.unsqueeze(1), x, weight, eps).view(x.shape)


def _launch(x: Tensor, addend: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """x [rows, heads, size]."""
    output = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    size = x.shape[2]
    if output.numel() == 0:
        return output
    norm_kernel[x.shape[:2]](
        x,
        addend,
        weight,
        output,
        size,
        eps,
        x.stride(0),
        x.stride(1),
        ADD=addend is not None,
        BLOCK=next_power_of_2(size),
        num_warps=min(max(next_power_of_2(size) // 512, 1), 16),
    )
    return output
