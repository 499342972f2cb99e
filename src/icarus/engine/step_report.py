"""What a step was made of, for whoever counts. Rows are positions that a step computed for a request."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from icarus.engine.scheduler import ScheduledRows


class RowKind(StrEnum):
    """What became of a position."""

    ENCODER = "encoder"
    """KV was written and no logits were wanted: prefill."""
    PAIRED = "paired"
    """KV was written by the base and a shared specialist was sampled: two rows, one of each stream."""
    SINGLE = "single"
    """One stream wrote KV and was sampled: the base, or a private specialist."""
    READ = "read"
    """Sampled; the KV was there already."""


MIXED = "mixed"
"""A step with rows of several kinds."""


@dataclass(frozen=True)
class StepReport:
    """A step that is done. `seconds`: the batch's way through the model, sampling included."""

    seconds: float
    num_requests: int
    rows: Mapping[RowKind, int]

    @property
    def kind(self) -> str:
        kinds = [kind for kind, count in self.rows.items() if count]
        return kinds[0] if len(kinds) == 1 else MIXED

    @property
    def encoder_seconds(self) -> float:
        """The share of encoder rows in `seconds`; a paired row counts as the two that it is."""
        total = sum(self.rows.values()) + self.rows.get(RowKind.PAIRED, 0)
        return self.seconds * self.rows.get(RowKind.ENCODER, 0) / total


def count_rows(scheduled: Iterable[ScheduledRows]) -> Counter[RowKind]:
    """Rows by kind."""
    rows: Counter[RowKind] = Counter()
    for item in scheduled:
        rows[RowKind.ENCODER] += max(item.num_writes - item.sample, 0)
        if item.sample:
            rows[_sampled_kind(item)] += 1
    return +rows


def _sampled_kind(item: ScheduledRows) -> RowKind:
    if item.num_writes == 0:
        return RowKind.READ
    return RowKind.PAIRED if item.has_read_row else RowKind.SINGLE
