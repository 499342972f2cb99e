"""LoRA deltas of several adapters over one batch."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

_FEW_ROWS = 32
"""Below this a CPU is several times faster through small float32 matrices than through bfloat16 or float16 ones."""


class LoraSegment(NamedTuple):
    """Rows [start, end) of a batch go through one adapter's A [rank, in] and B [out, rank] (scaling within B)."""

    start: int
    end: int
    a: Tensor
    b: Tensor


def add_segmented_lora(output: Tensor, x: Tensor, segments: Sequence[LoraSegment]) -> None:
    """output[s:e] += x[s:e] @ A.T @ B.T for each segment, in place; other rows stay as they are, to the bit.

    output [rows, out], x [rows, in]. Segments do not overlap. A and B may be wider than x: kept in float32 they save
    a CPU the conversion.
    """
    for start, end, a, b in segments:
        dtype = torch.float32 if x.device.type == "cpu" and end - start < _FEW_ROWS else x.dtype
        output[start:end] += linear(linear(x[start:end].to(dtype), a.to(dtype)), b.to(dtype))


def add_segmented_lora_reference(output: Tensor, x: Tensor, segments: Sequence[LoraSegment]) -> None:
    """The same, one row at a time, in float64."""
    for start, end, a, b in segments:
        for row in range(start, end):
            output[row] += (b.double() @ (a.double() @ x[row].double())).to(output.dtype)
