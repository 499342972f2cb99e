"""Rotary position embedding."""

from torch import Tensor

from icarus_kernels.rotate_cpu import rotate_cpu


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Turns each head in place, half-rotation form: dimension i with dimension i + dim / 2, by its row's angle i.

    heads     [rows, heads, dim], any strides but that the last is 1
    cos, sin  [rows, dim / 2] float32
    """
    if heads.device.type == "cpu":
        rotate_cpu(heads, cos, sin)
        return
    if heads.is_cuda:
        from icarus_kernels.rotate_triton import rotate_triton

        rotate_triton(heads, cos, sin)
        return
    rotate_reference(heads, cos, sin)


def rotate_reference(heads: Tensor, cos: Tensor, sin: Tensor) -> None:
    """The same, plainly."""
    first, second = heads.float().clone().chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    half = heads.shape[-1] // 2
    heads[..., :half] = first * cos - second * sin
    heads[..., half:] = second * cos + first * sin
