"""A turn's prefill on a worker of its own, while the decode worker keeps room for what it writes."""

import asyncio
import logging

from icarus.errors import IcarusError, UnavailableError
from icarus.rpc.messages import source_to_wire
from icarus.worker.v1 import decode_service_pb2 as decode_pb
from icarus.worker.v1 import prefill_service_pb2 as prefill_pb
from icarus_gateway.cluster.routing import Route
from icarus_gateway.cluster.workers import WorkerTable
from icarus_gateway.turns.decode_call import DecodeCall
from icarus_gateway.turns.progress import TurnProgress
from icarus_gateway.turns.staged_lease import StagedLease

log = logging.getLogger(__name__)


class PrefillStage:
    """`timeout_seconds` bounds the wait for a prefill worker."""

    def __init__(self, workers: WorkerTable, timeout_seconds: float):
        self._workers = workers
        self._timeout_seconds = timeout_seconds

    async def run(self, progress: TurnProgress, route: Route, call: DecodeCall, lease: StagedLease) -> None:
        """Has the prompt prefilled once the decode worker has room, and says so to the decode worker."""
        reserved = await call.read()
        if not reserved.HasField("reserved"):
            raise IcarusError(f"worker {route.decode.worker_id} did not answer with TurnReserved")
        progress.meter.reserved()
        first_block = reserved.reserved.num_local_blocks
        prefilling = asyncio.ensure_future(self._prefill(progress, route, first_block, lease))
        failing = asyncio.ensure_future(call.wait_readable())  # it has nothing to say before `staged` but an error
        try:
            await asyncio.wait((prefilling, failing), return_when=asyncio.FIRST_COMPLETED)
            if prefilling.done():
                await call.send(decode_pb.DecodeRequest(staged=decode_pb.PrefillStaged(blocks=prefilling.result())))
        finally:
            for task in (prefilling, failing):
                task.cancel()
            await asyncio.gather(prefilling, failing, return_exceptions=True)

    async def _prefill(
        self, progress: TurnProgress, route: Route, first_block: int, lease: StagedLease
    ) -> decode_pb.StagedBlocks | None:
        """None where the prefill failed: the decode worker computes then."""
        worker, request, adapter = route.prefill, progress.request, progress.adapter
        assert worker is not None
        message = prefill_pb.PrefillRequest(
            tenant=request.tenant,
            turn_id=request.turn_id,
            session_id=request.session_id,
            token_ids=(*request.prompt, *progress.output),
            adapter=adapter.name if adapter else "",
            adapter_mode=adapter.mode.value if adapter else "",
            adapter_digest=adapter.digest if adapter else "",
            first_block=first_block,
            sources=[source_to_wire(source) for source in route.prefill_sources],
            lease_id=lease.draw_id(worker.connection),
        )
        try:
            with self._workers.assigned(worker):
                call = worker.connection.prefill(message, self._timeout_seconds)
                answer = await self._workers.answer_of(worker, call)
        except IcarusError as error:
            progress.failed_prefills.add(worker.info.instance_id)
            worker.failed = worker.failed or isinstance(error, UnavailableError)
            log.warning("prefill failed", extra={"worker": worker.worker_id, "reason": str(error)})
            lease.give_back()
            return None
        lease.granted(worker.connection, answer.grant.lease_id)
        progress.learn_found(max(answer.num_cached_tokens, first_block * worker.info.block_size))
        progress.add_cost(answer)
        progress.prefill_worker = worker.worker_id
        return decode_pb.StagedBlocks(
            worker_id=worker.worker_id,
            address=worker.info.address,
            grant=answer.grant,
            num_cached_tokens=answer.num_cached_tokens,
        )
