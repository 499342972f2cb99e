"""Which runs `icarus bench agents` makes, and on which processes.

A *case* is one run: a loop (closed or open), who serves (shared or private specialists: the same weights), how many
specialists, and how much KV. A *stage* is a set of cases on the same processes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from icarus.types import AdapterMode
from icarus_benchmarks.agents.cache_use import CacheUse
from icarus_benchmarks.agents.open_loop import ROUND_ROBIN
from icarus_benchmarks.agents.turns import TurnFigures
from icarus_benchmarks.workload import ChainJob

CLOSED, OPEN = "closed", "open"
AMPLE, TIGHT = "ample", "tight"
_ROOM = 1.2
"""A pool over the tokens that it must hold: blocks are not all full."""


@dataclass(frozen=True)
class AgentsJob:
    """What is measured."""

    num_specialists: tuple[int, ...]
    closed: ChainJob
    open: ChainJob
    rates: tuple[float, ...]
    """Turns a second that the open loop offers."""
    routings: tuple[str, ...]
    data: Path | None
    """ReAct's folder; without it there is no open loop."""
    evicting_specialists: tuple[int, ...]
    """Of the closed loop with tight KV. Less than the turns of a workflow: a specialist must come back to it."""
    evicts_in_open_loop: bool
    """Whether there is an open loop with tight KV too."""
    max_kv_bytes: int
    """Of a worker's pool."""
    num_prefill: int
    num_decode: int
    rank: int
    random_weights: str
    """A name of SHAPES, whose weights are drawn; empty for the model in the settings."""


@dataclass(frozen=True)
class Case:
    """One run."""

    loop: str
    mode: AdapterMode
    num_specialists: int
    kv: str
    routing: str = ROUND_ROBIN
    rate: float | None = None
    """Turns a second offered; None in the closed loop."""

    @property
    def title(self) -> str:
        rate = "" if self.rate is None else f", {self.routing}, {self.rate:g} turns/s offered"
        return f"{self.loop} loop, {self.num_specialists} {self.mode}, {self.kv} KV{rate}"


@dataclass(frozen=True)
class CaseFigures:
    """What a case came to."""

    case: Case
    turns: TurnFigures
    cache: CacheUse


@dataclass(frozen=True)
class Stage:
    """Cases that run on the same processes."""

    loop: str
    kv: str
    kv_tokens: int
    """Of a worker's pool."""
    cases: tuple[Case, ...]


def stages(job: AgentsJob) -> list[Stage]:
    """In the order in which they run."""
    counts = job.num_specialists
    found = [Stage(CLOSED, AMPLE, _most_kv_tokens(job.closed, counts), _closed_cases(counts, AMPLE))]
    if job.evicting_specialists:
        cases = _closed_cases(job.evicting_specialists, TIGHT)
        found.append(Stage(CLOSED, TIGHT, _tight_kv_tokens(job.closed), cases))
    if job.data:
        cases = _open_cases(job, AMPLE)
        found.append(Stage(OPEN, AMPLE, _most_kv_tokens(job.open, counts), cases))
        if job.evicts_in_open_loop:
            found.append(Stage(OPEN, TIGHT, _tight_kv_tokens(job.open), _open_cases(job, TIGHT)))
    return found


def _closed_cases(num_specialists: Sequence[int], kv: str) -> tuple[Case, ...]:
    return tuple(Case(CLOSED, mode, count, kv) for count in num_specialists for mode in AdapterMode)


def _open_cases(job: AgentsJob, kv: str) -> tuple[Case, ...]:
    def of(count: int) -> Iterator[Case]:
        for routing in job.routings if count > 1 else (ROUND_ROBIN,):
            for rate in job.rates:
                for mode in AdapterMode:
                    yield Case(OPEN, mode, count, kv, routing, rate)

    return tuple(case for count in job.num_specialists for case in of(count))


def _most_kv_tokens(job: ChainJob, num_specialists: Sequence[int]) -> int:
    """What every private specialist keeps."""
    return int(_ROOM * max(job.kv_tokens(count) for count in num_specialists))


def _tight_kv_tokens(job: ChainJob) -> int:
    """What shared specialists keep."""
    return int(_ROOM * job.kv_tokens(1))
