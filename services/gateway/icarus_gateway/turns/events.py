"""What a turn is made of, from the request to its end."""

from collections.abc import Sequence
from dataclasses import dataclass

from icarus.cache.hashing import BlockNames
from icarus.rpc.messages import (
    finish_reason_from_wire,
    finish_reason_to_wire,
    logprobs_from_wire,
    logprobs_to_wire,
    usage_from_wire,
    usage_to_wire,
)
from icarus.types import FinishReason, SamplingParams, TokenLogprobs, Usage, WorkerId
from icarus.v1 import generation_pb2


@dataclass(frozen=True)
class Sampling:
    """How a turn is sampled, and the stop strings that only the gateway sees."""

    params: SamplingParams
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class BlockMark:
    """Where a turn left its blocks: all of them are known once the worker's changes before `sequence` are."""

    worker_id: WorkerId
    instance_id: str
    sequence: int


@dataclass(frozen=True)
class TurnRequest:
    """A turn whose input was checked."""

    tenant: str
    turn_id: str
    model: str
    prompt: tuple[int, ...]
    sampling: Sampling
    session_id: str = ""
    after: BlockMark | None = None
    """Where the session's last turn left its blocks."""
    names: BlockNames | None = None
    """Of blocks of the prompt, as far as they are known."""
    min_delta_tokens: int = 0
    """Tokens come from the worker at least so many at a time, but for the first and the last."""


@dataclass(frozen=True, slots=True)
class Delta:
    """New tokens, and the text that is certain by now.

    A turn makes one delta a token, and at most one without a token, at its end; `join` makes one of several.
    """

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One entry a token where they were asked for."""


@dataclass(frozen=True)
class End:
    """The turn is over."""

    reason: FinishReason
    usage: Usage
    seed: int
    decode_worker: WorkerId
    prefill_worker: WorkerId | None
    mark: BlockMark | None
    """Unknown where the worker died after its last token."""
    names: BlockNames | None
    """Of blocks of the turn's tokens, from the first on. Unknown for a turn of before the gateway's restart."""


TurnEvent = Delta | End


def join(deltas: Sequence[Delta]) -> Delta:
    """One delta of several that follow each other."""
    return Delta(
        tuple(token_id for delta in deltas for token_id in delta.token_ids),
        "".join(delta.text for delta in deltas),
        tuple(entry for delta in deltas for entry in delta.logprobs),
    )


def event_to_wire(event: TurnEvent) -> generation_pb2.TurnEvent:
    if isinstance(event, Delta):
        logprobs = map(logprobs_to_wire, event.logprobs)
        return generation_pb2.TurnEvent(
            delta=generation_pb2.TurnDelta(token_ids=event.token_ids, text=event.text, logprobs=logprobs)
        )
    return generation_pb2.TurnEvent(finished=end_to_wire(event))


def end_to_wire(end: End) -> generation_pb2.TurnFinished:
    return generation_pb2.TurnFinished(
        finish_reason=finish_reason_to_wire(end.reason),
        usage=usage_to_wire(end.usage),
        route=generation_pb2.Route(decode_worker=end.decode_worker, prefill_worker=end.prefill_worker),
        seed=end.seed,
    )


def event_from_wire(message: generation_pb2.TurnEvent) -> TurnEvent:
    if message.HasField("delta"):
        delta = message.delta
        return Delta(tuple(delta.token_ids), delta.text, tuple(map(logprobs_from_wire, delta.logprobs)))
    end = message.finished
    route = end.route
    return End(
        reason=finish_reason_from_wire(end.finish_reason),
        usage=usage_from_wire(end.usage),
        seed=end.seed,
        decode_worker=WorkerId(route.decode_worker),
        prefill_worker=WorkerId(route.prefill_worker) if route.HasField("prefill_worker") else None,
        mark=None,
        names=None,
    )
