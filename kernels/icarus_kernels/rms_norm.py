"""RMSNorm, alone or with the addition to the residual stream before it."""

import torch
from torch import Tensor

from icarus_kernels.rms_norm_cpu import rms_norm_cpu


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, computed in float32.

    x       [rows, size] or [rows, heads, size], any strides but that the last is 1
    weight  [size], contiguous, of x's dtype
    returns the shape of x, contiguous
    """
    assert weight.dtype is x.dtype, f"the weight is {weight.dtype}, x {x.dtype}"
    assert x.stride(-1) == 1 and weight.is_contiguous(), f"strides are {x.stride()}, {weight.stride()}"
    if x.is_cuda:
        from icarus_kernels.rms_norm_triton import rms_norm_triton

        return rms_norm_triton(x, weight, eps)
    return rms_norm_cpu(x, None, weight, eps)


def add_rms_norm(residual: Tensor, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """residual += x, in place; returns the residual's `rms_norm`. All contiguous and of one dtype, residual and x
    [rows, size]."""
    assert residual.dtype is x.dtype is weight.dtype, f"residual {residual.dtype}, x {x.dtype}, weight {weight.dtype}"
    assert residual.is_contiguous() and x.is_contiguous(), f"strides are {residual.stride()} and {x.stride()}"
    if x.is_cuda:
        from icarus_kernels.rms_norm_triton import add_rms_norm_triton

        return add_rms_norm_triton(residual, x, weight, eps)
    return rms_norm_cpu(residual, x, weight, eps)


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The same, in float64."""
    wide = x.double()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.double()).to(x.dtype)
