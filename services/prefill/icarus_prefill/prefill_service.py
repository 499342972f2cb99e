"""Writes the KV of a prompt's full blocks and leases them to the decode worker."""

import grpc.aio

from icarus.engine.events import Prefilled
from icarus.errors import FailedPreconditionError
from icarus.rpc.messages import grant_to_wire, source_from_wire
from icarus.types import LeaseId, SamplingParams
from icarus.worker.phases import TurnPhase
from icarus.worker.turn_context import turn_context
from icarus.worker.turn_spec import TurnSpec
from icarus.worker.v1 import prefill_service_pb2 as pb
from icarus.worker.v1 import prefill_service_pb2_grpc as pb_grpc
from icarus.worker.worker import Worker


class PrefillServicer(pb_grpc.PrefillServiceServicer):
    def __init__(self, worker: Worker):
        self._worker = worker

    async def Prefill(self, request: pb.PrefillRequest, context: grpc.aio.ServicerContext) -> pb.PrefillResponse:
        with turn_context("prefill", request.session_id, request.turn_id, request.adapter):
            return await self._prefill(request)

    async def _prefill(self, request: pb.PrefillRequest) -> pb.PrefillResponse:
        async with await self._worker.turn(_spec(request)) as turn:
            admitted = await turn.submit()
            if admitted.landing:
                await self._worker.gates.pass_through(TurnPhase.RESERVED)
                await turn.land_from_sources(admitted)
            async for event in turn.events():
                if isinstance(event, Prefilled):
                    await self._worker.gates.pass_through(TurnPhase.STREAMING)
                    return pb.PrefillResponse(
                        grant=grant_to_wire(event.grant),
                        num_cached_tokens=event.account.local_tokens + event.account.remote_tokens,
                        kv_written_tokens=event.account.kv_written_tokens,
                        transfer_reads=turn.fetch.num_reads,
                        transfer_bytes=turn.fetch.num_bytes,
                    )
        raise FailedPreconditionError(f"turn {request.turn_id}: the prefill ended without a grant")


def _spec(request: pb.PrefillRequest) -> TurnSpec:
    return TurnSpec(
        tenant=request.tenant,
        turn_id=request.turn_id,
        token_ids=request.token_ids,
        adapter=request.adapter,
        adapter_digest=request.adapter_digest,
        adapter_mode=request.adapter_mode,
        sampling=SamplingParams(),
        sources=[source_from_wire(source) for source in request.sources],
        prefill_only=True,
        lease_from_block=request.first_block,
        lease_id=LeaseId(request.lease_id) if request.lease_id else None,
    )
