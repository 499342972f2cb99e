"""A lease on another worker's blocks, from the reader's side: asked for, renewed while it is used, given back."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine

import grpc
import grpc.aio

from icarus import tracing
from icarus.errors import FailedPreconditionError, IcarusError
from icarus.rpc.messages import grant_from_wire
from icarus.rpc.status import error_from_rpc
from icarus.types import Grant
from icarus.worker.peers import ANSWER_SECONDS, Peer
from icarus.worker.v1 import block_service_pb2


class LapsedLeaseError(FailedPreconditionError):
    """A lease had ended before it was released: what was read under it may be wrong."""


async def acquire_lease(peer: Peer, request: block_service_pb2.AcquireLeaseRequest) -> Grant:
    """The longest prefix that the owner still has, perhaps none. A lease that comes when nobody waits any more is given
    back."""
    acquiring = asyncio.ensure_future(_acquire(peer, request))
    try:
        return await asyncio.shield(acquiring)
    except asyncio.CancelledError:  # the answer may be on its way
        _in_background(_give_up(peer, acquiring))
        raise


@contextlib.asynccontextmanager
async def held_lease(peer: Peer, grant: Grant) -> AsyncIterator[None]:
    """Renews the lease while the body runs; gives it back if the body fails or is cancelled."""
    renewal = asyncio.create_task(_renew_forever(peer, grant))
    try:
        yield
    except BaseException:
        _in_background(release_lease(peer, grant))
        raise
    finally:
        renewal.cancel()


async def release_lease(peer: Peer, grant: Grant) -> None:
    """Raises LapsedLeaseError if the lease lapsed before: what was read under it may be wrong. An owner that does not
    answer cannot say that it did not; one that is in a step longer than the lease can, afterwards."""
    try:
        request = block_service_pb2.ReleaseLeaseRequest(lease_id=grant.lease_id)
        await peer.blocks.ReleaseLease(request, timeout=max(grant.duration_seconds, ANSWER_SECONDS))
    except grpc.aio.AioRpcError as rpc_error:
        error = error_from_rpc(rpc_error, peer.address)
        raise (LapsedLeaseError(str(error)) if isinstance(error, FailedPreconditionError) else error) from None


async def _acquire(peer: Peer, request: block_service_pb2.AcquireLeaseRequest) -> Grant:
    try:
        response = await peer.blocks.AcquireLease(request, timeout=ANSWER_SECONDS, metadata=tracing.outgoing())
    except grpc.aio.AioRpcError as error:
        raise error_from_rpc(error, peer.address) from None
    return grant_from_wire(response.grant)


async def _give_up(peer: Peer, acquiring: asyncio.Future[Grant]) -> None:
    """Ends the lease that a turn asked for and did not wait for."""
    grant = await acquiring
    if grant.lease_id:
        await release_lease(peer, grant)


async def _renew_forever(peer: Peer, grant: Grant) -> None:
    request = block_service_pb2.RenewLeaseRequest(lease_id=grant.lease_id)
    while True:
        await asyncio.sleep(grant.duration_seconds / 3)
        with contextlib.suppress(grpc.aio.AioRpcError):  # the next one may be in time
            await peer.blocks.RenewLease(request, timeout=grant.duration_seconds)


_background: set[asyncio.Task[None]] = set()


def _in_background(release: Coroutine[None, None, None]) -> None:
    """A lease that cannot be given back expires."""

    async def run() -> None:
        with contextlib.suppress(IcarusError):
            await release

    task = asyncio.create_task(run())
    _background.add(task)
    task.add_done_callback(_background.discard)
