"""Rotary position embedding."""

import torch
from torch import Tensor

from icarus_kernels.rotate_cpu import rotate_cpu


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Turns each head in place, half-rotation form: dimension i with dimension i + dim / 2, by its row's angle i.

    heads     [rows, heads, dim], any strides but that the last is 1
    cos, sin  [rows, dim / 2] float32, contiguous
    """
    assert cos.dtype is sin.dtype is torch.float32, f"cos is {cos.dtype}, sin {sin.dtype}, not float32"
    assert cos.is_contiguous() and sin.is_contiguous(), f"strides of cos are {cos.stride()}, of sin {sin.stride()}"
    assert heads.stride(2) == 1, f"strides of heads are {heads.stride()}"
    if heads.is_cuda:
        from icarus_kernels.rotate_triton import rotate_triton

        rotate_triton(heads, cos, sin)
    else:
        rotate_cpu(heads, cos, sin)


def rotate_reference(heads: Tensor, cos: Tensor, sin: Tensor) -> None:
    """The same, plainly."""
    first, second = heads.float().clone().chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    half = heads.shape[-1] // 2
    heads[..., :half] = first * cos - second * sin
    heads[..., half:] = second * cos + first * sin
