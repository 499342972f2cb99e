"""RoPE on tensors."""

from dataclasses import dataclass
from math import pi

import torch
from icarus_kernels import rotate
from torch import Tensor

from icarus.model.rope import LinearScaling, Llama3Scaling, RopeConfig


@dataclass(frozen=True, eq=False)
class Rotation:
    """RoPE of a batch's rows, half-rotation form: dimension i turns with dimension i + dim / 2."""

    cos: Tensor
    """[rows, dim / 2] float32."""
    sin: Tensor

    @classmethod
    def at(cls, positions: Tensor, frequencies: Tensor) -> "Rotation":
        angles = positions.float().unsqueeze(1) * frequencies
        return cls(angles.cos(), angles.sin())

    def __call__(self, heads: Tensor) -> None:
        """Turns [rows, heads, dim] in place."""
        rotate(heads, self.cos, self.sin)


def rope_frequencies(rope: RopeConfig, device: torch.device) -> Tensor:
    """[dim / 2] float32: the angle of one position, in radians. In float32, as the models were trained."""
    exponents = torch.arange(0, rope.dim, 2, dtype=torch.float32, device=device) / rope.dim
    frequencies = 1.0 / rope.theta**exponents
    match rope.scaling:
        case LinearScaling(factor):
            return frequencies / factor
        case Llama3Scaling():
            return _scale_llama3(frequencies, rope.scaling)
        case None:
            return frequencies


def _scale_llama3(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
    turns = scaling.original_context * frequencies / (2 * pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies
