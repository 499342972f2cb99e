"""Runs turns: reserve, land the cached or prefilled blocks, generate."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import grpc.aio

from icarus.engine.events import Account, Admitted, Finished, PromptRead
from icarus.errors import DeadlineError, InvalidInputError
from icarus.rpc.messages import generated_logprobs_to_wire, grant_from_wire, sampling_from_wire, source_from_wire
from icarus.tracing import Span
from icarus.worker.event_queue import Tokens
from icarus.worker.phases import TurnPhase
from icarus.worker.turn import WorkerTurn
from icarus.worker.turn_context import turn_context
from icarus.worker.turn_spec import TurnSpec
from icarus.worker.v1 import decode_service_pb2 as pb
from icarus.worker.v1 import decode_service_pb2_grpc as pb_grpc
from icarus.worker.worker import Worker

_LINGER_SECONDS = 1.0
"""How long a finished call waits for the gateway's side to end: a `finish` that it writes to a call that is over would
cost it what it has not read yet."""


class DecodeServicer(pb_grpc.DecodeServiceServicer):
    def __init__(self, worker: Worker, stage_timeout_seconds: float):
        self._worker = worker
        self._stage_timeout_seconds = stage_timeout_seconds

    async def Decode(
        self, request_iterator: AsyncIterator[pb.DecodeRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.DecodeResponse]:
        begin = await _begin(request_iterator)
        with turn_context("decode", begin.session_id, begin.turn_id, begin.adapter) as span:
            async with aclosing(self._decode(begin, request_iterator, span)) as responses:
                async for response in responses:
                    yield response

    async def _decode(
        self, begin: pb.BeginTurn, request_iterator: AsyncIterator[pb.DecodeRequest], span: Span
    ) -> AsyncGenerator[pb.DecodeResponse]:
        async with await self._worker.turn(_spec(begin)) as turn:
            admitted = await turn.submit()
            yield pb.DecodeResponse(reserved=pb.TurnReserved(num_local_blocks=admitted.num_local_blocks))
            if admitted.landing:
                await self._worker.gates.pass_through(TurnPhase.RESERVED)
            staged = await self._staged(request_iterator, begin.turn_id) if begin.await_prefill else None
            if staged is not None and staged.HasField("blocks"):
                await _land_staged(turn, admitted, staged.blocks)
            elif admitted.landing:  # no prefill was asked for, or it failed
                await turn.land_from_sources(admitted)
            closing = asyncio.create_task(_finish_on_request(turn, request_iterator))
            try:
                async for event in turn.events():
                    if isinstance(event, Tokens):
                        await self._worker.gates.pass_through(TurnPhase.STREAMING)
                        yield pb.DecodeResponse(tokens=_tokens(event))
                    elif isinstance(event, PromptRead):
                        span.add_event("first_token")
                        yield pb.DecodeResponse(prompt=_prompt(event.account))
                    elif isinstance(event, Finished):
                        yield pb.DecodeResponse(finished=_finished(event, turn))
                await asyncio.wait((closing,), timeout=_LINGER_SECONDS)
            finally:
                closing.cancel()

    async def _staged(self, requests: AsyncIterator[pb.DecodeRequest], turn_id: str) -> pb.PrefillStaged:
        limit = self._stage_timeout_seconds
        try:
            request = await asyncio.wait_for(anext(requests, None), limit)
        except TimeoutError:
            raise DeadlineError(
                f"turn {turn_id}: no word of its prefill for {limit} s ([transfer] stage_timeout_seconds)"
            ) from None
        if request is None or request.WhichOneof("event") != "staged":
            raise InvalidInputError(f"turn {turn_id} awaits its prefill: 'staged' must come next on its stream")
        return request.staged


async def _begin(requests: AsyncIterator[pb.DecodeRequest]) -> pb.BeginTurn:
    request = await anext(requests, None)
    if request is None or request.WhichOneof("event") != "begin":
        raise InvalidInputError("a Decode stream starts with 'begin'")
    return request.begin


def _spec(begin: pb.BeginTurn) -> TurnSpec:
    return TurnSpec(
        tenant=begin.tenant,
        turn_id=begin.turn_id,
        token_ids=begin.token_ids,
        adapter=begin.adapter,
        adapter_digest=begin.adapter_digest,
        adapter_mode=begin.adapter_mode,
        sampling=sampling_from_wire(begin.sampling),
        sources=[source_from_wire(source) for source in begin.sources],
        num_earlier_output=begin.num_output_tokens,
        await_landing=begin.await_prefill,
        min_delta_tokens=begin.min_delta_tokens,
    )


async def _land_staged(turn: WorkerTurn, admitted: Admitted, blocks: pb.StagedBlocks) -> None:
    grant = grant_from_wire(blocks.grant)
    if not grant.block_ids:  # it had nothing that is not here already
        await turn.land_nothing()
        return
    await turn.land_from_grant(admitted, blocks.address, grant, blocks.num_cached_tokens)


async def _finish_on_request(turn: WorkerTurn, requests: AsyncIterator[pb.DecodeRequest]) -> None:
    """Ends with the gateway's side of the stream."""
    with contextlib.suppress(grpc.aio.AbortError):  # the turn failed, and its stream with it
        async for request in requests:
            if request.WhichOneof("event") == "finish":
                await turn.finish()


def _tokens(event: Tokens) -> pb.TokensGenerated:
    logprobs = (entry.logprobs for entry in event.sampled if entry.logprobs is not None)
    return pb.TokensGenerated(
        token_ids=[entry.token_id for entry in event.sampled], logprobs=map(generated_logprobs_to_wire, logprobs)
    )


def _prompt(account: Account) -> pb.PromptUsage:
    return pb.PromptUsage(
        computed_tokens=account.computed_tokens,
        local_tokens=account.local_tokens,
        remote_tokens=account.remote_tokens,
        written_under=[
            pb.WrittenTokens(writer=writer, tokens=tokens) for writer, tokens in account.written_under.items()
        ],
    )


def _finished(event: Finished, turn: WorkerTurn) -> pb.DecodeFinished:
    return pb.DecodeFinished(
        reason=event.reason.value,
        kv_written_tokens=event.account.kv_written_tokens,
        transfer_reads=turn.fetch.num_reads,
        transfer_bytes=turn.fetch.num_bytes,
        block_sequence=event.block_sequence,
    )
