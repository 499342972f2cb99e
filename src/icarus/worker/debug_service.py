"""A look inside this worker."""

import asyncio

import grpc.aio

from icarus.engine.engine import Engine
from icarus.errors import FailedPreconditionError, InvalidInputError
from icarus.worker.phases import PhaseGates, TurnPhase
from icarus.worker.v1 import debug_service_pb2 as pb
from icarus.worker.v1 import debug_service_pb2_grpc as pb_grpc
from icarus.worker.worker import Worker

_PHASES: dict[int, TurnPhase] = {
    pb.TURN_PHASE_QUEUED: TurnPhase.QUEUED,
    pb.TURN_PHASE_RESERVED: TurnPhase.RESERVED,
    pb.TURN_PHASE_TRANSFERRING: TurnPhase.TRANSFERRING,
    pb.TURN_PHASE_PREFILLING: TurnPhase.PREFILLING,
    pb.TURN_PHASE_DECODING: TurnPhase.DECODING,
    pb.TURN_PHASE_STREAMING: TurnPhase.STREAMING,
}


class DebugServicer(pb_grpc.DebugServiceServicer):
    def __init__(self, worker: Worker, test_hooks: bool):
        self._worker = worker
        self._test_hooks = test_hooks

    async def CheckIntegrity(
        self, request: pb.CheckIntegrityRequest, context: grpc.aio.ServicerContext
    ) -> pb.CheckIntegrityResponse:
        read = Engine.state if request.skip_check else Engine.check
        state = await asyncio.wrap_future(self._worker.engine.call(read))
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
            evicted_blocks=state.evicted_blocks,
        )

    async def HoldPhase(self, request: pb.HoldPhaseRequest, context: grpc.aio.ServicerContext) -> pb.HoldPhaseResponse:
        self._gates().hold(_phase(request.phase))
        return pb.HoldPhaseResponse()

    async def AwaitHeld(self, request: pb.AwaitHeldRequest, context: grpc.aio.ServicerContext) -> pb.AwaitHeldResponse:
        gates, phase = self._gates(), _phase(request.phase)
        if not gates.is_held(phase):
            raise FailedPreconditionError(f"phase {phase} is not held, so no turn stops there; hold it first")
        await gates.wait_reached(phase)
        return pb.AwaitHeldResponse()

    async def ReleasePhase(
        self, request: pb.ReleasePhaseRequest, context: grpc.aio.ServicerContext
    ) -> pb.ReleasePhaseResponse:
        self._gates().release(_phase(request.phase))
        await asyncio.wrap_future(self._worker.engine.post(Engine.resume_admission))
        return pb.ReleasePhaseResponse()

    def _gates(self) -> PhaseGates:
        if not self._test_hooks:
            raise FailedPreconditionError(
                f"worker {self._worker.identity.worker_id} has no test hooks; a test starts it with [worker] test_hooks"
            )
        return self._worker.gates


def _phase(phase: int) -> TurnPhase:
    if phase not in _PHASES:
        raise InvalidInputError(f"phase is {phase}; it must be one of {', '.join(_PHASES.values())}")
    return _PHASES[phase]
