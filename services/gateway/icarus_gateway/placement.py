"""Where a turn runs. Pure functions of what is known; the weights are settings of the gateway."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from icarus.types import WorkerId

_MAX_SOURCES = 4


@dataclass(frozen=True)
class Candidate:
    """A worker that could take the turn."""

    worker_id: WorkerId
    load: int
    """Requests that it has now."""
    available_blocks: int = 0


@dataclass(frozen=True)
class Placement:
    """Where to decode, and where to prefill first (None: the decode worker does it)."""

    decode: WorkerId
    prefill: WorkerId | None = None


def place(
    num_prompt_tokens: int,
    cached_tokens: Mapping[WorkerId, int],
    decoders: Sequence[Candidate],
    prefillers: Sequence[Candidate],
    load_penalty_tokens: int,
    prefill_threshold_tokens: int,
) -> Placement:
    """`cached_tokens`: leading tokens of the prompt that each worker holds, of any role. `decoders` is not empty.

    A prefill worker is used where at least `prefill_threshold_tokens` of the prompt are cached nowhere: what is cached
    anywhere is read by the decode worker itself, and a short rest is cheaper computed there than moved.
    """
    decode = choose(decoders, cached_tokens, load_penalty_tokens)
    uncached = num_prompt_tokens - max(cached_tokens.values(), default=0)
    if uncached < prefill_threshold_tokens or not prefillers:
        return Placement(decode)
    return Placement(decode, choose(prefillers, cached_tokens, load_penalty_tokens))


def choose(
    candidates: Sequence[Candidate], cached_tokens: Mapping[WorkerId, int], load_penalty_tokens: int
) -> WorkerId:
    """The highest `cached tokens - load_penalty_tokens * load`; then less load, more room, the name."""

    def rank(candidate: Candidate) -> tuple[int, int, int, str]:
        score = cached_tokens.get(candidate.worker_id, 0) - load_penalty_tokens * candidate.load
        return -score, candidate.load, -candidate.available_blocks, candidate.worker_id

    return min(candidates, key=rank).worker_id


def rank_sources(num_blocks: Mapping[WorkerId, int], reader: WorkerId) -> list[WorkerId]:
    """Who the reader should ask for blocks: most leading blocks first, itself left out."""
    others = [worker for worker, count in num_blocks.items() if count > 0 and worker != reader]
    return sorted(others, key=lambda worker: (-num_blocks[worker], worker))[:_MAX_SOURCES]
