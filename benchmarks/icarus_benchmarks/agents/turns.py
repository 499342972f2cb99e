"""One turn as its client saw it, and many turns summed up."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from icarus.client import AsyncClient
from icarus.errors import UnavailableError
from icarus_benchmarks.percentiles import percentile
from icarus_benchmarks.workload import ChainJob


@dataclass(frozen=True)
class Turn:
    """What a turn gave and cost. Seconds count from when it was due."""

    workflow: int
    index: int
    """Of the workflow's turns, from 0."""
    model: str
    output: tuple[int, ...]
    first_token_seconds: float
    seconds: float
    ended_at: float
    """By time.perf_counter."""
    prompt_tokens: int
    computed_tokens: int
    local_tokens: int
    remote_tokens: int
    cross_adapter_tokens: int


@dataclass(frozen=True)
class Latencies:
    """Of some turns, in seconds."""

    p50: float
    p95: float
    first_token_p50: float
    first_token_p95: float


@dataclass(frozen=True)
class TurnFigures:
    """What a set of turns came to."""

    num_turns: int
    wall_seconds: float
    output_tokens_per_second: float
    turns_per_second: float
    every: Latencies
    later: Latencies
    """Without each workflow's first turn, which nothing can be reused for."""
    prompt_tokens: int
    computed_tokens: int
    local_tokens: int
    remote_tokens: int
    cross_adapter_tokens: int

    @property
    def hit_rate(self) -> float:
        """Share of the prompt tokens that were not computed."""
        return (self.local_tokens + self.remote_tokens) / max(self.prompt_tokens, 1)


async def take_turn(
    client: AsyncClient,
    model: str,
    context: Sequence[int],
    job: ChainJob,
    workflow: int,
    index: int,
) -> Turn:
    """A greedy turn over the whole context, in one call. It is due now. Raises UnavailableError where it ends early."""
    due = time.perf_counter()
    first = None
    output: list[int] = []
    stream = client.generate(
        model,
        token_ids=context,
        min_delta_tokens=job.min_delta_tokens,
        max_tokens=job.output_tokens,
        temperature=0.0,
        ignore_eos=True,
    )
    async for delta in stream:
        if first is None and delta.token_ids:
            first = time.perf_counter()
        output += delta.token_ids
    ended = time.perf_counter()
    usage = stream.usage
    if usage is None or first is None or len(output) != job.output_tokens:
        raise UnavailableError(f"turn {index} of workflow {workflow} by {model} ended after {len(output)} tokens")
    return Turn(
        workflow=workflow,
        index=index,
        model=model,
        output=tuple(output),
        first_token_seconds=first - due,
        seconds=ended - due,
        ended_at=ended,
        prompt_tokens=usage.prompt_tokens,
        computed_tokens=usage.computed_tokens,
        local_tokens=usage.local_tokens,
        remote_tokens=usage.remote_tokens,
        cross_adapter_tokens=usage.cross_adapter_tokens,
    )


def sum_up(turns: Sequence[Turn], wall_seconds: float) -> TurnFigures:
    return TurnFigures(
        num_turns=len(turns),
        wall_seconds=wall_seconds,
        output_tokens_per_second=sum(len(turn.output) for turn in turns) / wall_seconds,
        turns_per_second=len(turns) / wall_seconds,
        every=_latencies(turns),
        later=_latencies(turn for turn in turns if turn.index > 0),
        prompt_tokens=sum(turn.prompt_tokens for turn in turns),
        computed_tokens=sum(turn.computed_tokens for turn in turns),
        local_tokens=sum(turn.local_tokens for turn in turns),
        remote_tokens=sum(turn.remote_tokens for turn in turns),
        cross_adapter_tokens=sum(turn.cross_adapter_tokens for turn in turns),
    )


def _latencies(turns: Iterable[Turn]) -> Latencies:
    turns = list(turns)
    seconds, first = [turn.seconds for turn in turns], [turn.first_token_seconds for turn in turns]
    return Latencies(percentile(seconds, 50), percentile(seconds, 95), percentile(first, 50), percentile(first, 95))
