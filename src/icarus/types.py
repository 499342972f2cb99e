"""The words that every part of Icarus shares. No torch, no gRPC.

Who owns which tokens of a turn (half-open intervals of positions; n = prompt length):

    [0, local)        KV was in this worker's pool already
    [local, landed)   KV was read from another worker by NIXL
    [landed, n)       KV was computed here
    n, n+1, ...       generated; after the turn KV covers [0, history length - 1)
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType

BlockId = NewType("BlockId", int)
"""Index of a block in one worker's pool."""

BlockHash = NewType("BlockHash", bytes)
"""A block's name: SHA-256 over what made it (docs/architecture.md, "A block"). 32 bytes."""

WorkerId = NewType("WorkerId", str)
LeaseId = NewType("LeaseId", str)
RequestId = NewType("RequestId", str)

DEFAULT_TENANT = "default"
MAX_MESSAGE_BYTES = 32 * 2**20
"""Of gRPC, either way."""
MIN_KEEPALIVE_SECONDS = 5
"""Who pings a server more often is disconnected."""


class AdapterMode(StrEnum):
    """Whose KV an adapter reads."""

    SHARED = "shared"
    """ICaRus: the frozen base writes the KV, the adapter only reads it."""
    PRIVATE = "private"
    """Conventional: one adapted stream that writes KV under the adapter's own namespace."""


class Role(StrEnum):
    """What a worker does."""

    PREFILL = "prefill"
    DECODE = "decode"


class FinishReason(StrEnum):
    """Why a turn ended."""

    STOP = "stop"
    """An end-of-sequence token, one of `stop_token_ids`, or a stop string."""
    LENGTH = "length"
    """`max_tokens` was reached."""
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen. Field names are the field's (vLLM, OpenAI).

    Checked by the gateway; `stop` strings are matched there too, the worker sees `stop_token_ids` only.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps every token."""
    seed: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    """The token that ends the turn is part of the output. With `ignore_eos` the end-of-sequence ids are not in it."""
    min_tokens: int = 0
    """None of `stop_token_ids` is chosen, and no stop string matched, until there are as many tokens of output."""
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logprobs: int | None = None
    """Alternatives to report with each token's log-probability; None reports nothing."""

    @property
    def has_penalties(self) -> bool:
        return (self.frequency_penalty, self.presence_penalty, self.repetition_penalty) != (0, 0, 1)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and the natural logarithm of its probability in the model's own distribution."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """How likely a generated token and its alternatives were."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]
    """The likeliest tokens, best first; the chosen one is among them if it was that likely."""


@dataclass(frozen=True)
class Usage:
    """What a turn cost. `prompt_tokens == computed_tokens + local_tokens + remote_tokens`."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    computed_tokens: int = 0
    """Prompt tokens whose KV was computed for this turn, on any worker."""
    local_tokens: int = 0
    """Prompt tokens whose KV was in the decode worker's pool."""
    remote_tokens: int = 0
    """Prompt tokens whose KV was read from another worker's cache."""
    cross_adapter_tokens: int = 0
    """The subset of local and remote tokens that another specialist's turn wrote first."""
    kv_written_tokens: int = 0
    """KV positions written by computation for this turn on any worker, generated and recomputed ones included."""
    transfer_reads: int = 0
    transfer_bytes: int = 0

    @property
    def cached_tokens(self) -> int:
        return self.local_tokens + self.remote_tokens


@dataclass(frozen=True)
class AdapterInfo:
    """An adapter as a worker reports it."""

    name: str
    digest: str
    mode: AdapterMode
    rank: int
    resident: bool = True
    """Whether its weights are in memory; if not, they are read again when a turn asks."""
    pinned: bool = False
    """Whether they may not be evicted."""


@dataclass(frozen=True)
class BlockSource:
    """A worker that is thought to hold the first `num_blocks` blocks of a prompt."""

    worker_id: WorkerId
    address: str
    num_blocks: int


@dataclass(frozen=True)
class Grant:
    """Blocks of a prompt that their owner holds for a reader until the lease ends.

    Block i of the grant is block `first_block + i` of the prompt.
    """

    lease_id: LeaseId
    owner_instance_id: str
    """The owner's start: a reader that knows another one fetches the transfer metadata again."""
    duration_seconds: float
    first_block: int
    block_ids: tuple[BlockId, ...] = field(default=())
    """Indices in the owner's pool."""
    writers: tuple[str, ...] = field(default=())
    """For each block the specialist whose turn first completed it ("" for the base)."""
    last_block_hash: BlockHash = BlockHash(b"")
    """The last block's name, which binds those before it: the reader compares it with its own."""


@dataclass(frozen=True)
class PoolCounts:
    """How many blocks of a pool are in which state. They sum to `total`."""

    total: int
    free: int
    cached: int
    """Named, unreferenced: reusable and evictable."""
    used: int
    """Referenced by a request or a lease."""
    quarantined: int
    """Under a posted read that has not settled."""
