"""What calls answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from icarus.types import AdapterMode, FinishReason, Role, TokenLogprobs, Usage


@dataclass(frozen=True)
class Delta:
    """Newly generated tokens."""

    token_ids: tuple[int, ...]
    text: str
    """May lag behind the ids by an unfinished character or a possible stop string."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One entry a token where `logprobs` was asked for."""


@dataclass(frozen=True)
class Route:
    """Which workers served a turn."""

    decode_worker: str
    prefill_worker: str | None
    """None where the decode worker prefilled."""


@dataclass(frozen=True)
class TurnResult:
    """A whole turn."""

    turn_id: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    route: Route
    seed: int
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One entry a token where `logprobs` was asked for."""


@dataclass(frozen=True)
class SessionState:
    """A session as the gateway keeps it."""

    session_id: str
    token_ids: tuple[int, ...]
    num_turns: int
    expires_in_seconds: float
    """Until it is forgotten, unless it is used."""


@dataclass(frozen=True)
class SessionSummary:
    """A session, without its tokens."""

    session_id: str
    num_tokens: int
    num_turns: int
    expires_in_seconds: float


@dataclass(frozen=True)
class Appended:
    """What an append came to."""

    num_appended_tokens: int
    num_tokens: int
    """Tokens in the history now."""


@dataclass(frozen=True)
class Model:
    """A name that turns can ask for."""

    name: str
    is_base: bool
    mode: AdapterMode | None
    """None for the base."""
    digest: str
    worker_ids: tuple[str, ...]
    pinned: bool = False
    """Whether its weights may not be evicted."""
    resident_worker_ids: tuple[str, ...] = ()
    """The workers that hold the weights now, for the base all of them; the others read an adapter's again when a turn
    asks."""


@dataclass(frozen=True)
class ModelList(Sequence[Model]):
    """The base first, then adapters by name. A name is `in` it too."""

    models: tuple[Model, ...]
    context_length: int

    @property
    def names(self) -> tuple[str, ...]:
        """What turns can ask for."""
        return tuple(model.name for model in self.models)

    @property
    def base(self) -> Model:
        """The base model, whom every gateway serves."""
        return next(model for model in self.models if model.is_base)

    @overload
    def __getitem__(self, index: int) -> Model: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Model, ...]: ...
    def __getitem__(self, index: int | slice) -> Model | tuple[Model, ...]:
        return self.models[index]

    def __len__(self) -> int:
        return len(self.models)

    def __contains__(self, item: object) -> bool:
        return item in self.names or item in self.models


@dataclass(frozen=True)
class Worker:
    """One worker's state. The totals count from its start."""

    worker_id: str
    role: Role
    address: str
    total_blocks: int
    free_blocks: int
    cached_blocks: int
    used_blocks: int
    quarantined_blocks: int
    block_bytes: int
    kv_written_tokens: int
    """KV positions written by computation, counted at the forward call."""
    transfer_reads: int
    transfer_bytes: int
    running_requests: int
    waiting_requests: int
    evicted_blocks: int
    """Cached blocks that gave way to others."""
    preemptions: int
    """Times that a request gave up its blocks: for another, or because a read into them hung."""


@dataclass(frozen=True)
class LeftOutWorker:
    """A worker that gets no turns: it missed its heartbeats, did not answer, or ends."""

    worker_id: str
    role: Role
    address: str
    silent_seconds: float
    """Since its last heartbeat."""
    draining: bool = False
    """It ends what it has and then leaves: nothing is wrong with it."""


@dataclass(frozen=True)
class Cluster:
    """The workers of a gateway, by name: those that answered, and the others that it knows."""

    workers: tuple[Worker, ...]
    block_size: int
    """Tokens in a block."""
    left_out: tuple[LeftOutWorker, ...] = ()
