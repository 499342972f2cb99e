"""What came of a worker's fetches: reads that were done, and why others were not."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from icarus.errors import DeadlineError, IcarusError, OverloadedError, UnavailableError
from icarus.transfer.posted_reads import ReadResult
from icarus.transfer.thread import TransferQueueFullError
from icarus.transfer.transport import TransferError
from icarus.worker.remote_lease import LapsedLeaseError


class UnsettledReadError(IcarusError):
    """A read failed or took too long, and its bytes may still land: its blocks must not be used."""


class FetchFailure(StrEnum):
    """Why blocks that another worker was thought to have were not read from it."""

    GONE = "gone"
    """It does not have them any more."""
    TIMEOUT = "timeout"
    FAILED = "failed"
    """The transport could not read."""
    LAPSED = "lapsed"
    """The lease had ended before the read did: what was read was thrown away."""
    UNREACHABLE = "unreachable"
    REFUSED = "refused"
    """It has lent all that it may, or its engine has too much waiting."""
    LOCAL = "local"
    """Too much waited for this worker's own transfer thread."""
    OTHER = "other"


_FAILURES: Mapping[type, FetchFailure] = {
    LapsedLeaseError: FetchFailure.LAPSED,
    DeadlineError: FetchFailure.TIMEOUT,
    TransferError: FetchFailure.FAILED,
    UnavailableError: FetchFailure.UNREACHABLE,
    OverloadedError: FetchFailure.REFUSED,
    TransferQueueFullError: FetchFailure.LOCAL,
}


@dataclass(frozen=True)
class FetchRecord:
    """What came of a worker's fetches, over all turns."""

    read: Callable[[ReadResult], None] = lambda result: None
    """Hears of every read that is done, and whose lease held until then: the others count as failures."""
    failures: Counter[FetchFailure] = field(default_factory=Counter)

    def failed(self, error: IcarusError) -> None:
        """A read that has not settled counts as what kept it from it."""
        cause = error.__cause__ if isinstance(error, UnsettledReadError) else error
        self.failures[_FAILURES.get(type(cause), FetchFailure.OTHER)] += 1
