"""One conversation played through a chain of specialists, and what it cost."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from icarus.client import Client, Cluster, Session
from icarus.errors import UnavailableError
from icarus.types import AdapterMode

Messages = Sequence[Mapping[str, str]]
_SETTLE_SECONDS = 10.0


@dataclass(frozen=True)
class Step:
    """What one specialist is asked."""

    model: str
    messages: Messages
    num_tokens: int
    """Of the answer: at most, or exactly."""
    exact: bool = False


@dataclass(frozen=True)
class TurnFigures:
    """What one turn cost."""

    mode: str
    turn: int
    specialist: str
    prefill_worker: str | None
    decode_worker: str
    prompt_tokens: int
    completion_tokens: int
    computed_tokens: int
    local_tokens: int
    remote_tokens: int
    cross_adapter_tokens: int
    kv_written_tokens: int
    nixl_reads: int
    nixl_bytes: int
    ttft_seconds: float
    tokens_per_second: float
    """Of the tokens after the first one; 0 where there is none."""
    answer: str


@dataclass(frozen=True)
class Totals:
    """What a chain cost. Field names are those of `icarus demo --json`."""

    prompt_tokens: int
    computed_tokens: int
    """Every KV position written by computation, as the workers count at the forward call."""
    unique_tokens: int
    """Distinct KV positions: a namespace's longest history less its last token, which has no KV yet."""
    local_tokens: int
    remote_tokens: int
    cross_adapter_tokens: int
    nixl_bytes: int
    kv_bytes_distinct: int
    kv_bytes_held: int
    """What all pools hold more than before, copies included."""
    median_ttft_seconds_later_turns: float
    wall_seconds: float


@dataclass(frozen=True)
class Chain:
    """A chain that was played."""

    turns: tuple[TurnFigures, ...]
    totals: Totals
    notes: tuple[str, ...]
    """What makes the figures doubtful; nothing, one hopes."""


def play(
    client: Client,
    mode: AdapterMode,
    context: Messages,
    steps: Sequence[Step],
    on_turn: Callable[[TurnFigures], None] = lambda turn: None,
) -> Chain:
    """Opens a session with the context, lets each model answer in turn, and deletes the session."""
    before = _settled(client)
    turns: list[TurnFigures] = []
    started = time.perf_counter()
    session = client.create_session(messages=context)
    for index, step in enumerate(steps):
        turns.append(_play_turn(session, mode, index, step))
        on_turn(turns[-1])
    wall_seconds = time.perf_counter() - started
    session.delete()
    after = _settled(client)
    totals = _total(mode, turns, before, after, wall_seconds)
    return Chain(tuple(turns), totals, _doubts(mode, turns, totals, after))


def _play_turn(session: Session, mode: AdapterMode, index: int, step: Step) -> TurnFigures:
    started = time.perf_counter()
    first, answer = None, ""
    stream = session.generate(
        step.model, messages=step.messages, max_tokens=step.num_tokens, ignore_eos=step.exact, temperature=0.0
    )
    for delta in stream:
        answer += delta.text
        if first is None and delta.token_ids:
            first = time.perf_counter()
    ended = time.perf_counter()
    usage, route = stream.usage, stream.route
    if usage is None or route is None or first is None:
        raise UnavailableError(f"turn {index + 1} by {step.model} ended without tokens or usage")
    return TurnFigures(
        mode=mode.value,
        turn=index + 1,
        specialist=step.model,
        prefill_worker=route.prefill_worker,
        decode_worker=route.decode_worker,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        computed_tokens=usage.computed_tokens,
        local_tokens=usage.local_tokens,
        remote_tokens=usage.remote_tokens,
        cross_adapter_tokens=usage.cross_adapter_tokens,
        kv_written_tokens=usage.kv_written_tokens,
        nixl_reads=usage.transfer_reads,
        nixl_bytes=usage.transfer_bytes,
        ttft_seconds=first - started,
        tokens_per_second=(usage.completion_tokens - 1) / max(ended - first, 1e-9),
        answer=answer,
    )


def _total(
    mode: AdapterMode, turns: Sequence[TurnFigures], before: Cluster, after: Cluster, wall_seconds: float
) -> Totals:
    unique_tokens = _unique_tokens(mode, turns)
    block_bytes = max(worker.block_bytes for worker in after.workers)
    later = [turn.ttft_seconds for turn in turns[1:]] or [turns[0].ttft_seconds]
    return Totals(
        prompt_tokens=sum(turn.prompt_tokens for turn in turns),
        computed_tokens=_written(after) - _written(before),
        unique_tokens=unique_tokens,
        local_tokens=sum(turn.local_tokens for turn in turns),
        remote_tokens=sum(turn.remote_tokens for turn in turns),
        cross_adapter_tokens=sum(turn.cross_adapter_tokens for turn in turns),
        nixl_bytes=sum(turn.nixl_bytes for turn in turns),
        kv_bytes_distinct=unique_tokens * block_bytes // after.block_size,
        kv_bytes_held=_held_bytes(after) - _held_bytes(before),
        median_ttft_seconds_later_turns=statistics.median(later),
        wall_seconds=wall_seconds,
    )


def _unique_tokens(mode: AdapterMode, turns: Sequence[TurnFigures]) -> int:
    longest: dict[str, int] = {}
    for turn in turns:
        namespace = turn.specialist if mode is AdapterMode.PRIVATE else ""
        length = turn.prompt_tokens + turn.completion_tokens - 1
        longest[namespace] = max(longest.get(namespace, 0), length)
    return sum(longest.values())


def _doubts(mode: AdapterMode, turns: Sequence[TurnFigures], totals: Totals, after: Cluster) -> tuple[str, ...]:
    doubts = []
    reported = sum(turn.kv_written_tokens for turn in turns)
    if reported != totals.computed_tokens:
        doubts.append(f"{mode}: turns report {reported} KV positions written, workers {totals.computed_tokens}")
    full = [worker.worker_id for worker in after.workers if worker.free_blocks == 0]
    if full:
        doubts.append(f"{mode}: the pools of {', '.join(full)} are full, so blocks may have been evicted")
    return tuple(doubts)


def _settled(client: Client) -> Cluster:
    """The cluster once nothing runs and no block is lent any more."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        cluster = client.cluster()
        busy = [worker.worker_id for worker in cluster.workers if worker.running_requests or worker.used_blocks]
        if not busy or time.monotonic() > deadline:
            return cluster
        time.sleep(0.05)


def _written(cluster: Cluster) -> int:
    return sum(worker.kv_written_tokens for worker in cluster.workers)


def _held_bytes(cluster: Cluster) -> int:
    return sum((worker.cached_blocks + worker.used_blocks) * worker.block_bytes for worker in cluster.workers)
