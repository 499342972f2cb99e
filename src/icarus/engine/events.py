"""What the engine says of a request, to its sink. No tensors.

In this order:

    Admitted, PromptRead, Sampled, Sampled, ..., Finished    a turn
    Admitted, Prefilled                                      a prefill for another worker
    Failed                                                   at any time, and nothing after it
"""

from collections.abc import Mapping
from dataclasses import dataclass

from icarus.types import BlockHash, BlockId, FinishReason, Grant, TokenLogprobs


@dataclass(frozen=True)
class Admitted:
    """The prompt's blocks are reserved. Blocks [num_local_blocks, len(block_ids)) hold nothing yet."""

    num_local_blocks: int
    block_ids: tuple[BlockId, ...]
    block_hashes: tuple[BlockHash, ...]
    """Names of the prompt's full blocks."""
    landing: bool
    """Whether the engine now waits for `land`."""


@dataclass(frozen=True)
class Account:
    """What a request cost on this worker; prompt tokens by where their KV came from."""

    computed_tokens: int
    local_tokens: int
    remote_tokens: int
    written_under: Mapping[str, int]
    """Of local and remote, by the other specialist whose turn wrote them first ("" for the base)."""
    kv_written_tokens: int

    @property
    def cross_adapter_tokens(self) -> int:
        return sum(self.written_under.values())


@dataclass(frozen=True)
class PromptRead:
    """The first token follows: the prompt has been used, and where its KV came from will not change any more."""

    account: Account


@dataclass(frozen=True)
class Sampled:
    """A new token."""

    token_id: int
    logprobs: TokenLogprobs | None = None
    """None where they were not asked for."""


@dataclass(frozen=True)
class Finished:
    """The turn ended as it should."""

    reason: FinishReason
    account: Account
    block_sequence: int
    """The number that the pool's next change will get: every block of this turn was announced before it."""


@dataclass(frozen=True)
class Prefilled:
    """A prefill-only request is done; its blocks are leased."""

    grant: Grant
    account: Account


@dataclass(frozen=True)
class Failed:
    """The request is gone; `error` says why."""

    error: Exception


EngineEvent = Admitted | PromptRead | Sampled | Finished | Prefilled | Failed
