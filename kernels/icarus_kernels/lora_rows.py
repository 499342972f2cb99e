"""Which rows of a batch go through which adapters, and where the adapters' matrices are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

FEW_ROWS = 32
"""Of a segment. With more, a CPU is faster through matrix products."""


@dataclass(frozen=True, eq=False)
class LoraTable:
    """One adapter's matrices and where they lie. Built once, when the adapter is loaded."""

    pairs: Mapping[tuple[int, int], tuple[Tensor, Tensor]]
    """(layer, module) -> A [rank, in], B [out, rank] with its scaling. A is contiguous, and so is B.T."""
    entries: Tensor
    """[layers, modules, 3] int64: the address of A, that of B, the rank. Zeros where a module is left alone."""
    max_rank: int

    @classmethod
    def build(
        cls, pairs: Mapping[tuple[int, int], tuple[Tensor, Tensor]], num_layers: int, num_modules: int
    ) -> "LoraTable":
        """Matrices of one dtype and device; they are copied where they are not laid out as `pairs` says."""
        laid_out = {at: (a.contiguous(), b.t().contiguous().t()) for at, (a, b) in pairs.items()}
        entries = torch.zeros(num_layers, num_modules, 3, dtype=torch.int64)
        for at, (a, b) in laid_out.items():
            entries[at] = torch.tensor([a.data_ptr(), b.data_ptr(), a.shape[0]])
        device = next((a.device for a, _ in laid_out.values()), torch.device("cpu"))
        return cls(laid_out, entries.to(device), max((a.shape[0] for a, _ in laid_out.values()), default=0))


class LoraSegment(NamedTuple):
    """Rows [start, end) of a batch go through one adapter."""

    start: int
    end: int
    table: LoraTable


@dataclass(frozen=True, eq=False)
class LoraRows:
    """Which rows of a batch go through which adapters: built once a step, read by every module of every layer."""

    segments: tuple[LoraSegment, ...]
    """Ascending; they do not overlap. Rows of the base are in none."""
    bounds: Tensor
    """[segments, 2] int32: start and end."""
    entries: Tensor
    """[segments, layers, modules, 3] int64, as in `LoraTable`."""
    max_rank: int
    max_rows: int
    """Most rows of one segment."""

    def __post_init__(self) -> None:
        assert self.bounds.dtype is torch.int32, f"bounds are {self.bounds.dtype}"
        assert self.entries.dtype is torch.int64, f"entries are {self.entries.dtype}"

    @cached_property
    def few(self) -> "LoraRows | None":
        """The segments of at most FEW_ROWS rows."""
        if self.max_rows <= FEW_ROWS:
            return self
        return LoraRows.build([s for s in self.segments if s.end - s.start <= FEW_ROWS], self.bounds.device)

    @cached_property
    def many(self) -> tuple[LoraSegment, ...]:
        """The other segments."""
        return tuple(s for s in self.segments if s.end - s.start > FEW_ROWS)

    @classmethod
    def build(cls, segments: Sequence[LoraSegment], device: str | torch.device = "cpu") -> "LoraRows | None":
        """None without segments."""
        if not segments:
            return None
        return cls(
            segments=tuple(segments),
            bounds=torch.tensor([(s.start, s.end) for s in segments], dtype=torch.int32, device=device),
            entries=torch.stack([s.table.entries for s in segments]),
            max_rank=max(s.table.max_rank for s in segments),
            max_rows=max(s.end - s.start for s in segments),
        )


class Columns(NamedTuple):
    """Where a module's output lies in that of a linear that several modules share: columns [start, end)."""

    module: int
    start: int
    end: int
