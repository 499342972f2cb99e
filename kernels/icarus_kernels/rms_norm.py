"""RMSNorm, alone or with the addition to the residual stream before it."""

import torch
from torch import Tensor
from torch.nn import functional

from icarus_kernels.rms_norm_cpu import rms_norm_cpu


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, computed in float32.

    x [..., size], its last two dimensions with any strides but that the last is 1; weight [size] -> contiguous
    """
    if x.device.type == "cpu":
        return rms_norm_cpu(x, None, weight, eps)
    if x.is_cuda:
        from icarus_kernels.rms_norm_triton import rms_norm_triton

        return rms_norm_triton(x, weight, eps)
    return functional.rms_norm(x, weight.shape, weight, eps)


def add_rms_norm(residual: Tensor, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """residual += x, in place; returns the residual's `rms_norm`. All [rows, size], contiguous."""
    if x.device.type == "cpu":
        return rms_norm_cpu(residual, x, weight, eps)
    if x.is_cuda:
        from icarus_kernels.rms_norm_triton import add_rms_norm_triton

        return add_rms_norm_triton(residual, x, weight, eps)
    residual.add_(x)
    return functional.rms_norm(residual, weight.shape, weight, eps)


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The same, in float64."""
    wide = x.double()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.double()).to(x.dtype)
