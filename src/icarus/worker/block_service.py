"""Lends this worker's blocks to others."""

import asyncio
import time
from collections.abc import Awaitable
from concurrent.futures import Future
from typing import TypeVar

import grpc.aio

from icarus.rpc.messages import grant_to_wire
from icarus.types import BlockHash, Grant, LeaseId
from icarus.worker.turn_context import turn_context
from icarus.worker.v1 import block_service_pb2 as pb
from icarus.worker.v1 import block_service_pb2_grpc as pb_grpc
from icarus.worker.worker import Worker

T = TypeVar("T")


class BlockServicer(pb_grpc.BlockServiceServicer):
    def __init__(self, worker: Worker):
        self._worker = worker

    async def GetTransferMetadata(
        self, request: pb.GetTransferMetadataRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetTransferMetadataResponse:
        identity = self._worker.identity
        return pb.GetTransferMetadataResponse(
            instance_id=identity.instance_id,
            cache_fingerprint=identity.fingerprint,
            agent_metadata=self._worker.transfer.metadata,
            num_blocks=identity.num_blocks,
        )

    async def AcquireLease(
        self, request: pb.AcquireLeaseRequest, context: grpc.aio.ServicerContext
    ) -> pb.AcquireLeaseResponse:
        with turn_context("lease", "", request.turn_id, "") as span:
            grant = await self._lease(request)
            span.set_attributes({"icarus.blocks": len(grant.block_ids)})
        return pb.AcquireLeaseResponse(grant=grant_to_wire(grant))

    async def _lease(self, request: pb.AcquireLeaseRequest) -> Grant:
        hashes = [BlockHash(block_hash) for block_hash in request.block_hashes]
        granting = self._worker.engine.call(lambda engine: engine.acquire_lease(hashes, request.first_block))
        try:
            return await asyncio.shield(asyncio.wrap_future(granting))
        except asyncio.CancelledError:
            granting.add_done_callback(self._give_up)
            raise

    def _give_up(self, granting: Future[Grant]) -> None:
        """Ends a lease whose reader left before it was granted."""
        if granting.exception() is None and (lease_id := granting.result().lease_id):
            now = time.monotonic()
            self._worker.engine.post(lambda engine: engine.release_lease(lease_id, now))

    async def RenewLease(
        self, request: pb.RenewLeaseRequest, context: grpc.aio.ServicerContext
    ) -> pb.RenewLeaseResponse:
        lease_id, now = LeaseId(request.lease_id), time.monotonic()
        call = self._worker.engine.post(lambda engine: engine.renew_lease(lease_id, now))
        return pb.RenewLeaseResponse(duration_seconds=await _whoever_waits(call))

    async def ReleaseLease(
        self, request: pb.ReleaseLeaseRequest, context: grpc.aio.ServicerContext
    ) -> pb.ReleaseLeaseResponse:
        lease_id, now = LeaseId(request.lease_id), time.monotonic()
        call = self._worker.engine.post(lambda engine: engine.release_lease(lease_id, now))
        await _whoever_waits(call)
        return pb.ReleaseLeaseResponse()


def _whoever_waits(call: Future[T]) -> Awaitable[T]:
    """The engine's answer, a step later perhaps. A reader that has given up by then asked in time all the same."""
    return asyncio.shield(asyncio.wrap_future(call))
