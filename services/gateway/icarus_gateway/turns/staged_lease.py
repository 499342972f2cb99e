"""The lease of a prefill's blocks while nobody else answers for it."""

import asyncio
import contextlib
from types import TracebackType

from icarus.cache.leases import draw_lease_id
from icarus.errors import IcarusError
from icarus.types import LeaseId
from icarus.worker.v1 import block_service_pb2 as pb
from icarus_gateway.cluster.worker_connection import WorkerConnection

_TIMEOUT_SECONDS = 10.0
_releasing: set[asyncio.Task[None]] = set()


class StagedLease:
    """Leaving the context gives the lease back, unless the decode worker has taken it over by then.

    The lease's id is drawn here, before the prefill: a call that is cancelled may lose the answer that grants it. A
    decode worker that is cancelled may have heard of the lease or not, so it may be released twice: no harm. One that
    still reads under it never uses what it reads.
    """

    def __init__(self) -> None:
        self._held: tuple[WorkerConnection, str] | None = None

    def draw_id(self, prefill: WorkerConnection) -> LeaseId:
        """The id to ask the prefill worker for."""
        lease_id = draw_lease_id()
        self._held = (prefill, lease_id)
        return lease_id

    def granted(self, prefill: WorkerConnection, lease_id: str) -> None:
        """The prefill worker's answer; "" where it had nothing to lease."""
        self._held = (prefill, lease_id) if lease_id else None

    def taken_over(self) -> None:
        """The decode worker has read the blocks and released the lease, or given it up."""
        self._held = None

    def give_back(self) -> None:
        """Ends the lease, if there is one: nobody will read under it."""
        if self._held is not None:
            task = asyncio.ensure_future(_release(*self._held))
            _releasing.add(task)
            task.add_done_callback(_releasing.discard)
            self._held = None

    def __enter__(self) -> "StagedLease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give_back()


async def _release(prefill: WorkerConnection, lease_id: str) -> None:
    with contextlib.suppress(IcarusError):  # it is gone, and the lease with it; or the lease has ended
        await prefill.release_lease(pb.ReleaseLeaseRequest(lease_id=lease_id), _TIMEOUT_SECONDS)
