"""Drives one turn over the workers, from routing to its end, over the death of a worker if need be."""

import logging
from collections.abc import Callable

from icarus.errors import FailedPreconditionError, IcarusError, NotFoundError, OverloadedError, UnavailableError
from icarus.rpc.messages import sampling_to_wire, source_to_wire
from icarus.rpc.model_labels import ModelLabels
from icarus.text.stop_strings import OutputText
from icarus.text.tokenizer import Detokenizer, Tokenizer
from icarus.worker.v1 import decode_service_pb2 as decode_pb
from icarus_gateway.cluster.block_reports import BlockReports
from icarus_gateway.cluster.routing import Route, Router
from icarus_gateway.cluster.worker import Worker
from icarus_gateway.cluster.workers import WorkerTable
from icarus_gateway.metrics import GatewayMetrics
from icarus_gateway.turns.decode_call import DecodeCall
from icarus_gateway.turns.events import Delta, End, TurnRequest
from icarus_gateway.turns.meter import TurnMeter, measured
from icarus_gateway.turns.prefill_stage import PrefillStage
from icarus_gateway.turns.progress import TurnProgress
from icarus_gateway.turns.staged_lease import StagedLease

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""At one token: a turn that goes on with each attempt is no danger to the workers."""


class TurnDriver:
    """Runs turns."""

    def __init__(
        self,
        workers: WorkerTable,
        reports: BlockReports,
        router: Router,
        tokenizer: Tokenizer,
        prefill_stage: PrefillStage,
        metrics: GatewayMetrics,
        labels: ModelLabels,
        report_wait_seconds: float,
    ):
        self._workers = workers
        self._reports = reports
        self._router = router
        self._tokenizer = tokenizer
        self._prefill_stage = prefill_stage
        self._metrics = metrics
        self._labels = labels
        self._report_wait_seconds = report_wait_seconds

    async def run(self, request: TurnRequest, emit: Callable[[Delta], None]) -> End:
        """Plays the turn to its end; `emit` takes its deltas as they come. Cancelling it ends the turn everywhere.

        A worker that cannot be reached or has no room is replaced by another, which goes on after the tokens so far.
        Raises NotFoundError for an unknown model, OverloadedError, UnavailableError, and what the worker raised.
        """
        with measured(self._metrics, self._labels, request) as meter:
            end = await self._run(request, emit, meter)
            meter.finished(end.reason)
            return end

    async def _run(self, request: TurnRequest, emit: Callable[[Delta], None], meter: TurnMeter) -> End:
        adapter = self._router.adapter(request.model)
        if (mark := request.after) is not None and self._workers.has(mark.worker_id, mark.instance_id):
            await self._reports.wait_for(mark.worker_id, mark.sequence, self._report_wait_seconds)
        sampling = request.sampling
        text = OutputText(Detokenizer(self._tokenizer, request.prompt), sampling.stop, sampling.params.min_tokens)
        progress = TurnProgress(request, adapter, text, emit, meter)
        failure: IcarusError | None = None
        while True:
            route = self._route(progress, failure)
            meter.placed(route)
            if failure is not None:
                meter.redispatched(failure)
            try:
                return await self._attempt(progress, route)
            except (UnavailableError, OverloadedError, NotFoundError, FailedPreconditionError) as error:
                failure = error  # the last two: the worker does not have the adapter's weights any more
            if progress.reason() is not None:  # only the word that it is over got lost
                return progress.end(route, finished=None)
            if not (isinstance(failure, NotFoundError) and await self._renew_adapter(progress, route.decode)):
                self._leave_out(progress, route.decode, failure)

    def _route(self, progress: TurnProgress, failure: IcarusError | None) -> Route:
        """`failure` is what the last attempt failed with: raised where nobody else can take the turn."""
        request = progress.request
        try:
            route = self._router.route(
                request.tenant,
                (*request.prompt, *progress.output),
                request.sampling.params.max_tokens - len(progress.output),
                progress.adapter,
                excluded=progress.tried | progress.failed_prefills,
                known=progress.names or request.names,
            )
        except UnavailableError as error:
            raise failure or error from None
        progress.names = route.names
        names = {"decode": route.decode.worker_id, "prefill": route.prefill.worker_id if route.prefill else ""}
        log.debug("turn routed", extra=names)
        return route

    async def _renew_adapter(self, progress: TurnProgress, worker: Worker) -> bool:
        """Looks up what the adapter's name stands for by now; once, and only before the turn's first token.

        False where that is what it stood for. Raises NotFoundError where nobody has it any more.
        """
        if progress.adapter is None or progress.output or progress.renewed:
            return False
        progress.renewed = True
        await self._workers.next_heartbeat(worker)
        before, progress.adapter = progress.adapter, self._router.adapter(progress.request.model)
        after = progress.adapter
        return after is not None and (after.digest, after.mode) != (before.digest, before.mode)

    def _leave_out(self, progress: TurnProgress, worker: Worker, failure: IcarusError) -> None:
        """Leaves the worker out of further attempts; raises `failure` when there were enough."""
        progress.attempt_failed(worker.info.instance_id)
        if isinstance(failure, UnavailableError):
            worker.failed = True
        if progress.num_failed_here >= MAX_ATTEMPTS:
            raise failure
        log.warning("attempt failed", extra={"worker": worker.worker_id, "reason": str(failure)})

    async def _attempt(self, progress: TurnProgress, route: Route) -> End:
        worker = route.decode
        progress.num_resumed = len(progress.output)
        call = DecodeCall(self._workers, worker)
        with self._workers.assigned(worker), StagedLease() as lease:
            async with call:
                await call.send(decode_pb.DecodeRequest(begin=_begin(progress, route)))
                if route.prefill is not None:
                    await self._prefill_stage.run(progress, route, call, lease)
                finishing = False
                while True:
                    message = await call.read()
                    lease.taken_over()
                    if message.HasField("finished"):
                        await call.close()
                        break
                    if message.HasField("reserved"):
                        progress.meter.reserved()
                    if message.HasField("prompt"):
                        progress.learn_sources(message.prompt)
                    progress.take(message.tokens)
                    if progress.text.stopped and not finishing:
                        finishing = True
                        await call.send(decode_pb.DecodeRequest(finish=decode_pb.FinishTurn()))
        return progress.end(route, message.finished)


def _begin(progress: TurnProgress, route: Route) -> decode_pb.BeginTurn:
    request = progress.request
    return decode_pb.BeginTurn(
        tenant=request.tenant,
        turn_id=request.turn_id,
        session_id=request.session_id,
        token_ids=(*request.prompt, *progress.output),
        num_output_tokens=len(progress.output),
        adapter=progress.adapter.name if progress.adapter else "",
        adapter_digest=progress.adapter.digest if progress.adapter else "",
        adapter_mode=progress.adapter.mode.value if progress.adapter else "",
        sampling=sampling_to_wire(request.sampling.params),
        sources=[source_to_wire(source) for source in route.decode_sources],
        await_prefill=route.prefill is not None,
        min_delta_tokens=request.min_delta_tokens,
    )
