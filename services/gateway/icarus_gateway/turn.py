"""Drives one turn over the workers, from routing to its end, over the death of a worker if need be."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from icarus.errors import FailedPreconditionError, IcarusError, NotFoundError, OverloadedError, UnavailableError
from icarus.rpc.messages import generated_logprobs_from_wire, sampling_to_wire, source_to_wire
from icarus.rpc.model_labels import ModelLabels
from icarus.types import AdapterInfo, FinishReason, Usage, WorkerId
from icarus.worker.v1 import decode_service_pb2 as decode_pb
from icarus.worker.v1 import prefill_service_pb2 as prefill_pb
from icarus_gateway.block_reports import BlockReports
from icarus_gateway.decode_call import DecodeCall
from icarus_gateway.history import BlockMark
from icarus_gateway.metrics import GatewayMetrics
from icarus_gateway.prompt_sources import PromptSources, prompt_sources
from icarus_gateway.routing import Route, Router
from icarus_gateway.staged_lease import StagedLease
from icarus_gateway.stop_strings import OutputText
from icarus_gateway.tokenizer import Detokenizer, Tokenizer
from icarus_gateway.turn_events import Delta, End, TurnEvent, TurnRequest
from icarus_gateway.turn_meter import TurnMeter, measured
from icarus_gateway.workers import Worker, WorkerTable

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
_INDEX_WAIT_SECONDS = 0.2


@dataclass
class _Progress:
    """What the client has of the turn, and what its attempts cost."""

    request: TurnRequest
    adapter: AdapterInfo | None
    text: OutputText
    meter: TurnMeter
    sources: PromptSources | None = None
    """Where the prompt came from, by the last attempt that said so."""
    output: list[int] = field(default_factory=list)
    tried: set[str] = field(default_factory=set)
    """Instance ids of workers that failed it."""
    renewed: bool = False
    """Whether the adapter's name was looked up again."""
    num_resumed: int = 0
    """Output tokens at the end of the running attempt's prompt."""
    prefill_worker: WorkerId | None = None
    kv_written_tokens: int = 0
    transfer_reads: int = 0
    transfer_bytes: int = 0

    def add_cost(self, answer: prefill_pb.PrefillResponse | decode_pb.DecodeFinished) -> None:
        self.kv_written_tokens += answer.kv_written_tokens
        self.transfer_reads += answer.transfer_reads
        self.transfer_bytes += answer.transfer_bytes

    def learn_sources(self, message: decode_pb.PromptUsage) -> None:
        self.sources = prompt_sources(message, self.num_resumed)
        self.meter.prompt_used(self.sources)

    def take(self, tokens: decode_pb.TokensGenerated) -> Iterator[Delta]:
        """Adds tokens of the worker, a delta each; those after a stop string are not the turn's."""
        for i, token_id in enumerate(tokens.token_ids):
            taken, text = self.text.push((token_id,))
            if not taken:
                return
            self.output += taken
            self.meter.token()
            if self.reason() is not None:
                text += self.text.flush()
            yield Delta((token_id,), text, tuple(map(generated_logprobs_from_wire, taken, tokens.logprobs[i : i + 1])))

    def reason(self) -> FinishReason | None:
        """Why the turn is over, as far as its tokens tell; None while it goes on."""
        params = self.request.sampling.params
        if self.text.stopped or (self.output and self.output[-1] in params.stop_token_ids):
            return FinishReason.STOP
        return FinishReason.LENGTH if len(self.output) >= params.max_tokens else None


class TurnDriver:
    """Runs turns. `prefill_timeout_seconds` bounds the wait for a prefill worker."""

    def __init__(
        self,
        workers: WorkerTable,
        reports: BlockReports,
        router: Router,
        tokenizer: Tokenizer,
        prefill_timeout_seconds: float,
        metrics: GatewayMetrics,
        labels: ModelLabels,
    ):
        self._workers = workers
        self._reports = reports
        self._router = router
        self._tokenizer = tokenizer
        self._prefill_timeout_seconds = prefill_timeout_seconds
        self._metrics = metrics
        self._labels = labels

    async def run(self, request: TurnRequest) -> AsyncGenerator[TurnEvent]:
        """Deltas, then one End. Closing the iterator cancels the turn everywhere.

        A worker that cannot be reached or has no room is replaced by another, which goes on after the tokens so far.
        Raises NotFoundError for an unknown model, OverloadedError, UnavailableError, and what the worker raised.
        """
        with measured(self._metrics, self._labels, request) as meter:
            async with aclosing(self._run(request, meter)) as events:
                async for event in events:
                    if isinstance(event, End):
                        meter.finished(event.reason)
                    yield event

    async def _run(self, request: TurnRequest, meter: TurnMeter) -> AsyncGenerator[TurnEvent]:
        adapter = self._router.adapter(request.model)
        if request.after is not None:
            await self._reports.wait_for(request.after.worker_id, request.after.sequence, _INDEX_WAIT_SECONDS)
        sampling = request.sampling
        text = OutputText(Detokenizer(self._tokenizer, request.prompt), sampling.stop, sampling.params.min_tokens)
        progress = _Progress(request, adapter, text, meter)
        failure: IcarusError | None = None
        while True:
            route = self._route(progress, failure)
            meter.placed(route)
            if failure is not None:
                meter.redispatched(failure)
            try:
                async with aclosing(self._attempt(progress, route)) as events:
                    async for event in events:
                        yield event
                return
            except (UnavailableError, OverloadedError, NotFoundError, FailedPreconditionError) as error:
                failure = error  # the last two: the worker does not have the adapter's weights any more
            if progress.reason() is not None:  # only the word that it is over got lost
                for event in _end(progress, route, finished=None):
                    yield event
                return
            if not (isinstance(failure, NotFoundError) and await self._renew_adapter(progress, route.decode)):
                self._leave_out(progress, route.decode, failure)

    def _route(self, progress: _Progress, failure: IcarusError | None) -> Route:
        """`failure` is what the last attempt failed with: raised where nobody else can take the turn."""
        request = progress.request
        try:
            route = self._router.route(
                request.tenant, (*request.prompt, *progress.output), progress.adapter, excluded=progress.tried
            )
        except UnavailableError as error:
            raise failure or error from None
        names = {"decode": route.decode.worker_id, "prefill": route.prefill.worker_id if route.prefill else ""}
        log.debug("turn routed", extra=names)
        return route

    async def _renew_adapter(self, progress: _Progress, worker: Worker) -> bool:
        """Looks up what the adapter's name stands for by now; once, and only before the turn's first token.

        False where that is what it stood for. Raises NotFoundError where nobody has it any more.
        """
        if progress.adapter is None or progress.output or progress.renewed:
            return False
        progress.renewed = True
        await self._workers.next_heartbeat(worker)
        before, progress.adapter = progress.adapter, self._router.adapter(progress.request.model)
        return progress.adapter is not None and progress.adapter.digest != before.digest

    def _leave_out(self, progress: _Progress, worker: Worker, failure: IcarusError) -> None:
        """Leaves the worker out of further attempts; raises `failure` when there were enough."""
        progress.tried.add(worker.info.instance_id)
        if isinstance(failure, UnavailableError):
            worker.failed = True
        if len(progress.tried) >= MAX_ATTEMPTS:
            raise failure
        log.warning("attempt failed", extra={"worker": worker.worker_id, "reason": str(failure)})

    async def _attempt(self, progress: _Progress, route: Route) -> AsyncGenerator[TurnEvent]:
        worker = route.decode
        progress.num_resumed = len(progress.output)
        is_lost: Callable[[], bool] = lambda: self._workers.is_lost(worker)  # noqa: E731
        call = DecodeCall(worker.connection, worker.worker_id, is_lost, self._workers.heartbeat_seconds)
        with self._workers.assigned(worker), StagedLease() as lease:
            async with call:
                await call.send(decode_pb.DecodeRequest(begin=_begin(progress, route)))
                if route.prefill is not None:
                    await self._stage(progress, route, route.prefill, call, lease)
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
                    for delta in progress.take(message.tokens):
                        yield delta
                    if progress.text.stopped and not finishing:
                        finishing = True
                        await call.send(decode_pb.DecodeRequest(finish=decode_pb.FinishTurn()))
        for event in _end(progress, route, message.finished):
            yield event

    async def _stage(
        self, progress: _Progress, route: Route, prefill: Worker, call: DecodeCall, lease: StagedLease
    ) -> None:
        """Has the prompt prefilled once the decode worker has room, and says so to the decode worker."""
        reserved = await call.read()
        if not reserved.HasField("reserved"):
            raise IcarusError(f"worker {route.decode.worker_id} did not answer with TurnReserved")
        progress.meter.reserved()
        first_block = reserved.reserved.num_local_blocks
        prefilling = asyncio.ensure_future(self._prefill(progress, route, prefill, first_block, lease))
        failing = asyncio.ensure_future(call.wait_readable())  # it has nothing to say before `staged` but an error
        try:
            await asyncio.wait((prefilling, failing), return_when=asyncio.FIRST_COMPLETED)
            if prefilling.done():
                await call.send(decode_pb.DecodeRequest(staged=decode_pb.PrefillStaged(blocks=prefilling.result())))
        finally:
            await _end_all(prefilling, failing)

    async def _prefill(
        self, progress: _Progress, route: Route, worker: Worker, first_block: int, lease: StagedLease
    ) -> decode_pb.StagedBlocks | None:
        """None where the prefill failed: the decode worker computes then."""
        request, adapter = progress.request, progress.adapter
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
                connection, timeout = worker.connection, self._prefill_timeout_seconds
                answer = await connection.ask(connection.prefill.Prefill, message, timeout)
        except IcarusError as error:
            worker.failed = worker.failed or isinstance(error, UnavailableError)
            log.warning("prefill failed", extra={"worker": worker.worker_id, "reason": str(error)})
            lease.give_back()
            return None
        lease.granted(worker.connection, answer.grant.lease_id)
        progress.add_cost(answer)
        progress.prefill_worker = worker.worker_id
        return decode_pb.StagedBlocks(
            worker_id=worker.worker_id,
            address=worker.info.address,
            grant=answer.grant,
            num_cached_tokens=answer.num_cached_tokens,
        )


async def _end_all(*tasks: asyncio.Future[Any]) -> None:
    """Cancels them and waits for their ends, whatever these are. A caller that is cancelled meanwhile hears of it."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()


def _begin(progress: _Progress, route: Route) -> decode_pb.BeginTurn:
    request = progress.request
    return decode_pb.BeginTurn(
        tenant=request.tenant,
        turn_id=request.turn_id,
        session_id=request.session_id,
        token_ids=(*request.prompt, *progress.output),
        num_output_tokens=len(progress.output),
        adapter=progress.adapter.name if progress.adapter else "",
        adapter_digest=progress.adapter.digest if progress.adapter else "",
        sampling=sampling_to_wire(request.sampling.params),
        sources=[source_to_wire(source) for source in route.decode_sources],
        await_prefill=route.prefill is not None,
    )


def _end(progress: _Progress, route: Route, finished: decode_pb.DecodeFinished | None) -> list[TurnEvent]:
    """The last events. `finished` is None where the worker died after the turn's last token."""
    rest = progress.text.flush()
    events: list[TurnEvent] = [Delta((), rest)] if rest else []
    reason = progress.reason()
    if finished is not None:
        progress.add_cost(finished)
        reason = reason or FinishReason(finished.reason)
    assert reason is not None
    worker = route.decode
    mark = BlockMark(worker.worker_id, finished.block_sequence) if finished is not None else None
    usage = _usage(progress)
    seed = progress.request.sampling.params.seed
    return [*events, End(reason, usage, seed, worker.worker_id, progress.prefill_worker, mark)]


def _usage(progress: _Progress) -> Usage:
    """What the last attempt used. What a worker wrote that died is not known and not in `kv_written_tokens`."""
    num_prompt = len(progress.request.prompt)
    sources = progress.sources or PromptSources(computed=num_prompt)
    return Usage(
        prompt_tokens=num_prompt,
        completion_tokens=len(progress.output),
        computed_tokens=sources.computed,
        local_tokens=sources.local,
        remote_tokens=sources.remote,
        cross_adapter_tokens=sources.cross_adapter,
        kv_written_tokens=progress.kv_written_tokens,
        transfer_reads=progress.transfer_reads,
        transfer_bytes=progress.transfer_bytes,
    )
