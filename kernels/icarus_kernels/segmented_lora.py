"""LoRA deltas of several adapters over one batch."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class LoraSegment(NamedTuple):
    """Rows [start, end) of a batch go through one adapter's A [rank, in] and B [out, rank] (scaling within B)."""

    start: int
    end: int
    a: Tensor
    b: Tensor


def add_segmented_lora(output: Tensor, x: Tensor, segments: Sequence[LoraSegment]) -> None:
    """output[s:e] += x[s:e] @ A.T @ B.T for each segment, in place; other rows stay as they are, to the bit.

    output [rows, out], x [rows, in]. Segments do not overlap.
    """
    for start, end, a, b in segments:
        output[start:end].addmm_(x[start:end] @ a.t(), b.t())


def add_segmented_lora_reference(output: Tensor, x: Tensor, segments: Sequence[LoraSegment]) -> None:
    """The same, one row at a time, in float64."""
    for start, end, a, b in segments:
        for row in range(start, end):
            output[row] += (b.double() @ (a.double() @ x[row].double())).to(output.dtype)
