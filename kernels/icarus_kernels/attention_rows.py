"""Which rows of a batch attend to which pages: built once a step, read by every layer's attention."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class SequenceRows(NamedTuple):
    """The rows of one sequence, on the host."""

    row_ids: Sequence[int]
    """Which rows of the batch these are."""
    positions: Sequence[int]
    """Of the rows, ascending. Two rows may share one: the two streams of a token."""
    block_ids: Sequence[int] | NDArray[np.int32]
    """The sequence's pages in order; may be longer than needed. An array is quicker to take over."""

    @property
    def is_decode(self) -> bool:
        """Whether it is one row, or the two of a paired token."""
        return len(self.row_ids) <= 2 and self.positions[0] == self.positions[-1]


@dataclass(frozen=True, eq=False)
class AttentionRows:
    """The query rows of a batch, grouped by sequence, so that K and V are read once for all rows of one.

    A row at position p sees the keys of positions 0..p of its sequence, or with a window those of (p - window, p].
    Rows of a group ascend by position: the two rows of a paired token are neighbours. Sequences of decode (one or two
    rows, at one position) come before those with a chunk.
    """

    row_ids: Tensor
    """[rows] int32: which row of the query entry i is."""
    positions: Tensor
    """[rows] int32, of entry i."""
    starts: Tensor
    """[sequences + 1] int32: entries [starts[s], starts[s + 1]) are those of sequence s."""
    block_tables: Tensor
    """[sequences, most pages of one] int32: the pages that hold positions 0, block_size, ...; the rest is 0."""
    num_decodes: int
    """Sequences [0, num_decodes) are decode."""
    max_rows: int
    """Most rows of one sequence; 0 without rows."""
    max_keys: int
    """Most keys that a row sees when it has no window; 0 without rows."""
    derived: dict[Hashable, Any] = field(default_factory=dict, init=False)
    """What an implementation works out once for all layers, by keys of its own. `replace` leaves it behind."""

    def __post_init__(self) -> None:
        dtypes = {self.row_ids.dtype, self.positions.dtype, self.starts.dtype, self.block_tables.dtype}
        assert dtypes == {torch.int32}, f"rows, positions, starts and block tables are {dtypes}"

    @property
    def num_rows(self) -> int:
        return self.row_ids.shape[0]

    @property
    def num_sequences(self) -> int:
        return self.block_tables.shape[0]

    @classmethod
    def build(
        cls, sequences: Sequence[SequenceRows], block_size: int, device: str | torch.device = "cpu"
    ) -> "AttentionRows":
        """Each sequence has at least one row. Only the pages up to that of its last row are taken over. Raises
        ValueError where there are fewer."""
        ordered = [s for s in sequences if s.is_decode] + [s for s in sequences if not s.is_decode]
        starts = [0]
        for sequence in ordered:
            starts.append(starts[-1] + len(sequence.row_ids))
        pages = [sequence.positions[-1] // block_size + 1 for sequence in ordered]
        width = max(pages, default=0)
        tables = np.zeros((len(ordered), width), np.int32)
        for table, sequence, count in zip(tables, ordered, pages, strict=True):
            if len(sequence.block_ids) < count:
                raise ValueError(
                    f"a row at position {sequence.positions[-1]} needs {count} pages of {block_size} tokens; "
                    f"its sequence has {len(sequence.block_ids)}"
                )
            table[:count] = sequence.block_ids[:count]

        def on_device(values: Sequence[Any]) -> Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        return cls(
            row_ids=on_device([row for s in ordered for row in s.row_ids]),
            positions=on_device([position for s in ordered for position in s.positions]),
            starts=on_device(starts),
            block_tables=torch.from_numpy(tables).to(device),
            num_decodes=sum(s.is_decode for s in ordered),
            max_rows=max((len(s.row_ids) for s in ordered), default=0),
            max_keys=max((s.positions[-1] + 1 for s in ordered), default=0),
        )
