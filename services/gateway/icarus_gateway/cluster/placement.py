"""Where a turn runs: one cost rule (docs/placement.md). Pure functions of what is known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from icarus.types import WorkerId

_MAX_SOURCES = 4


@dataclass(frozen=True)
class Weights:
    """What things cost, in prompt tokens. Settings of the gateway, under the same names."""

    load_penalty_tokens: int
    adapter_penalty_tokens: int
    prefill_threshold_tokens: int


@dataclass(frozen=True)
class Candidate:
    """A worker that could take the turn."""

    worker_id: WorkerId
    load: int
    """Requests that it has now."""
    available_tokens: int = 0
    """What its free and evictable blocks hold."""
    resident: bool = True
    """Whether the adapter that the turn needs there, if any, is in memory."""


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
    weights: Weights,
) -> Placement:
    """`cached_tokens`: leading tokens of the prompt that each worker holds, of any role. `decoders` is not empty."""
    decode = cheapest(decoders, num_prompt_tokens, cached_tokens, weights)
    roomy = [worker for worker in prefillers if _has_room(worker, num_prompt_tokens, cached_tokens)]
    if not roomy:
        return Placement(decode.worker_id)
    prefill = cheapest(roomy, num_prompt_tokens, cached_tokens, weights)
    uncached = num_prompt_tokens - max(cached_tokens.values(), default=0)
    worthwhile = uncached >= _detour_cost(prefill, decode, weights)
    return Placement(decode.worker_id, prefill.worker_id if worthwhile else None)


def cheapest(
    candidates: Sequence[Candidate], num_prompt_tokens: int, cached_tokens: Mapping[WorkerId, int], weights: Weights
) -> Candidate:
    """One with room for the prompt if there is any, of those the least `cost`; then less load, more room, the name."""

    def rank(worker: Candidate) -> tuple[bool, int, int, int, str]:
        full = not _has_room(worker, num_prompt_tokens, cached_tokens)
        missing = num_prompt_tokens - cached_tokens.get(worker.worker_id, 0)
        return full, cost(worker, missing, weights), worker.load, -worker.available_tokens, worker.worker_id

    return min(candidates, key=rank)


def cost(worker: Candidate, num_missing_tokens: int, weights: Weights) -> int:
    """What the turn costs on a worker that lacks so many tokens of its prompt, in tokens."""
    adapter = 0 if worker.resident else weights.adapter_penalty_tokens
    return num_missing_tokens + weights.load_penalty_tokens * worker.load + adapter


def _detour_cost(prefill: Candidate, decode: Candidate, weights: Weights) -> int:
    """Uncached tokens from which it pays to have them computed on a prefill worker: its longer queue counts."""
    queue = weights.load_penalty_tokens * max(0, prefill.load - decode.load)
    adapter = 0 if prefill.resident else weights.adapter_penalty_tokens
    return weights.prefill_threshold_tokens + queue + adapter


def _has_room(worker: Candidate, num_prompt_tokens: int, cached_tokens: Mapping[WorkerId, int]) -> bool:
    return num_prompt_tokens - cached_tokens.get(worker.worker_id, 0) <= worker.available_tokens


def rank_sources(num_blocks: Mapping[WorkerId, int], reader: WorkerId) -> list[WorkerId]:
    """Who the reader should ask for blocks: most leading blocks first, itself left out."""
    others = [worker for worker, count in num_blocks.items() if count > 0 and worker != reader]
    return sorted(others, key=lambda worker: (-num_blocks[worker], worker))[:_MAX_SOURCES]
