"""A turn as one worker's engine sees it. No tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from icarus.cache.hashing import child_hash
from icarus.engine.events import Account, EngineEvent
from icarus.types import AdapterMode, BlockHash, BlockId, LeaseId, RequestId, SamplingParams

if TYPE_CHECKING:
    from icarus.adapters.lora import LoraWeights
    from icarus.engine.token_counts import TokenCounts


class Phase(StrEnum):
    """Where a request is. Blocks are held from LANDING on."""

    WAITING = "waiting"
    """For room in the pool."""
    LANDING = "landing"
    """Its prompt's blocks are reserved; blocks from another worker may be on their way into them."""
    RUNNING = "running"
    """In the batch."""
    DONE = "done"


@dataclass(frozen=True)
class Landing:
    """Blocks that were read from another worker into a request's reserved blocks, proved valid by the lease."""

    writers: tuple[str, ...] = ()
    """Who first completed each block."""
    num_remote_tokens: int = 0
    """Of the landed tokens, those that nobody computed for this turn."""


@dataclass(eq=False)
class Request:
    """One turn: what was asked of the engine and, from `phase` on, how far it got. Only the engine thread touches it
    after `submit`.

    KV is there for positions [0, num_kv); blocks [0, num_named) are complete and have their names.
    """

    request_id: RequestId
    """Unique to this attempt: a turn may come again."""
    token_ids: list[int]
    """Prompt, then output."""
    num_prompt: int = field(init=False)
    adapter: LoraWeights | None
    writer: str
    """The specialist that the turn is for; blocks that this turn completes carry it. "" for the base."""
    sampling: SamplingParams
    root: BlockHash
    block_size: int
    sink: Callable[[EngineEvent], None]
    """Called on the engine thread; must only hand the event over."""
    prefill_only: bool = False
    await_landing: bool = False
    """Wait for `land` even if nothing is known to come."""
    num_source_blocks: int = 0
    """Leading blocks of the prompt that another worker is thought to have."""
    num_earlier_output: int = 0
    """Tokens at the prompt's end that are output of an earlier attempt."""
    lease_from_block: int = 0
    """First block that a prefill-only request leases to its reader."""
    lease_id: LeaseId | None = None
    """The id that its reader wants for that lease."""

    phase: Phase = Phase.WAITING
    block_ids: list[BlockId] = field(default_factory=list)
    block_hashes: list[BlockHash] = field(default_factory=list)
    num_kv: int = 0
    num_named: int = 0
    was_admitted: bool = False
    local_tokens: int = 0
    remote_tokens: int = 0
    staged_tokens: int = 0
    """Of what landed, what another worker computed for this turn."""
    written_under: Counter[str] = field(default_factory=Counter)
    """Cached tokens by the other specialist whose turn wrote them first."""
    kv_written_tokens: int = 0
    token_counts: TokenCounts | None = None
    """Kept by the sampler where penalties need it."""

    def __post_init__(self) -> None:
        self.num_prompt = len(self.token_ids)
        self.extend_hashes()

    @property
    def is_private(self) -> bool:
        return self.adapter is not None and self.adapter.mode == AdapterMode.PRIVATE

    @property
    def is_shared(self) -> bool:
        return self.adapter is not None and self.adapter.mode == AdapterMode.SHARED

    @property
    def output_start(self) -> int:
        """Position of the first output token, an earlier attempt's included."""
        return self.num_prompt - self.num_earlier_output

    @property
    def num_output(self) -> int:
        """Output tokens so far, an earlier attempt's included."""
        return len(self.token_ids) - self.output_start

    @property
    def num_target(self) -> int:
        """Positions that must have KV before the request samples, or before a prefill-only one is done."""
        if self.prefill_only:
            return len(self.token_ids) // self.block_size * self.block_size
        return len(self.token_ids)

    @property
    def num_to_lease(self) -> int:
        """Blocks that a prefill-only request ends in a lease of."""
        return max(self.num_blocks_for(self.num_target) - self.lease_from_block, 0)

    @property
    def num_missing(self) -> int:
        return self.num_target - self.num_kv

    @property
    def account(self) -> Account:
        prompt = self.num_target if self.prefill_only else self.num_prompt
        computed = prompt - self.local_tokens - self.remote_tokens
        written_under = dict(self.written_under)
        return Account(computed, self.local_tokens, self.remote_tokens, written_under, self.kv_written_tokens)

    def cross_tokens(self, writers: Iterable[str]) -> Counter[str]:
        """Tokens of blocks that another specialist's turn completed first, by that specialist."""
        blocks = Counter(writer for writer in writers if writer != self.writer)
        return Counter({writer: count * self.block_size for writer, count in blocks.items()})

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def extend_hashes(self) -> None:
        """Names every full block of the tokens so far. The names are only announced as the KV is written."""
        parent = self.block_hashes[-1] if self.block_hashes else self.root
        for start in range(len(self.block_hashes) * self.block_size, len(self.token_ids), self.block_size):
            tokens: Sequence[int] = self.token_ids[start : start + self.block_size]
            if len(tokens) == self.block_size:
                parent = child_hash(parent, tokens)
                self.block_hashes.append(parent)
