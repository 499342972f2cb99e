"""The lease of a prefill's blocks while nobody else answers for it."""

import asyncio
import contextlib
from types import TracebackType

import grpc.aio

from icarus.cache.leases import draw_lease_id
from icarus.types import LeaseId
from icarus.worker.v1 import block_service_pb2 as pb
from icarus.worker.v1 import block_service_pb2_grpc as pb_grpc

_TIMEOUT_SECONDS = 10.0
_releasing: set[asyncio.Task[None]] = set()


class StagedLease:
    """Leaving the context gives the lease back, unless the decode worker has taken it over by then.

    The lease's id is drawn here, before the prefill: a call that is cancelled may lose the answer that grants it. A
    decode worker that is cancelled may have heard of the lease or not, so it may be released twice: no harm. One that
    still reads under it never uses what it reads.
    """

    def __init__(self) -> None:
        self._held: tuple[grpc.aio.Channel, str] | None = None

    def draw_id(self, channel: grpc.aio.Channel) -> LeaseId:
        """The id to ask the prefill worker behind `channel` for."""
        lease_id = draw_lease_id()
        self._held = (channel, lease_id)
        return lease_id

    def granted(self, channel: grpc.aio.Channel, lease_id: str) -> None:
        """The prefill worker's answer; "" where it had nothing to lease."""
        self._held = (channel, lease_id) if lease_id else None

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


async def _release(channel: grpc.aio.Channel, lease_id: str) -> None:
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):  # the channel may be closed by now
        await pb_grpc.BlockServiceStub(channel).ReleaseLease(
            pb.ReleaseLeaseRequest(lease_id=lease_id), timeout=_TIMEOUT_SECONDS
        )
