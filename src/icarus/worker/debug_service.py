"""A look inside this worker."""

import asyncio

import grpc.aio

from icarus.engine.engine import Engine
from icarus.worker.v1 import debug_service_pb2 as pb
from icarus.worker.v1 import debug_service_pb2_grpc as pb_grpc
from icarus.worker.worker import Worker


class DebugServicer(pb_grpc.DebugServiceServicer):
    def __init__(self, worker: Worker):
        self._worker = worker

    async def CheckIntegrity(
        self, request: pb.CheckIntegrityRequest, context: grpc.aio.ServicerContext
    ) -> pb.CheckIntegrityResponse:
        state = await asyncio.wrap_future(self._worker.engine.call(Engine.check))
        return pb.CheckIntegrityResponse(
            total_blocks=state.pool.total,
            free_blocks=state.pool.free,
            cached_blocks=state.pool.cached,
            used_blocks=state.pool.used,
            quarantined_blocks=state.pool.quarantined,
            leased_blocks=state.leased_blocks,
            block_bytes=self._worker.identity.block_bytes,
            kv_written_tokens=state.kv_written_tokens,
            transfer_reads=self._worker.transfer.reads,
            transfer_bytes=self._worker.transfer.bytes_read,
            running_requests=state.running_requests,
            waiting_requests=state.waiting_requests,
            leases_released=state.leases_released,
            leases_expired=state.leases_expired,
            preemptions=state.preemptions,
        )
