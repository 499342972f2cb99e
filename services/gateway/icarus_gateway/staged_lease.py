"""The lease of a prefill's blocks while nobody else answers for it."""

import asyncio
import contextlib
from types import TracebackType

import grpc.aio

from icarus.worker.v1 import block_service_pb2 as pb
from icarus.worker.v1 import block_service_pb2_grpc as pb_grpc

_TIMEOUT_SECONDS = 10.0
_releasing: set[asyncio.Task[None]] = set()


class StagedLease:
    """Leaving the context gives the lease back, unless the decode worker has taken it over by then.

    A decode worker that is cancelled may have heard of the lease or not, so it may be released twice: no harm. One that
    still reads under it never uses what it reads. An answer of the prefill worker that is lost on its way to a
    cancelled call leaves its lease to expire.
    """

    def __init__(self) -> None:
        self._held: tuple[grpc.aio.Channel, str] | None = None

    def hold(self, channel: grpc.aio.Channel, lease_id: str) -> None:
        """The prefill worker behind `channel` has granted it."""
        self._held = (channel, lease_id) if lease_id else None

    def taken_over(self) -> None:
        """The decode worker has read the blocks and released the lease, or given it up."""
        self._held = None

    def __enter__(self) -> "StagedLease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._held is not None:
            task = asyncio.ensure_future(_release(*self._held))
            _releasing.add(task)
            task.add_done_callback(_releasing.discard)


async def _release(channel: grpc.aio.Channel, lease_id: str) -> None:
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):  # the channel may be closed by now
        await pb_grpc.BlockServiceStub(channel).ReleaseLease(
            pb.ReleaseLeaseRequest(lease_id=lease_id), timeout=_TIMEOUT_SECONDS
        )
