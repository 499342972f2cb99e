"""What a service asks of its worker."""

from collections.abc import Sequence
from dataclasses import dataclass

from icarus.types import AdapterMode, BlockSource, LeaseId, SamplingParams


@dataclass(frozen=True)
class TurnSpec:
    """A turn as a service asks for it."""

    tenant: str
    turn_id: str
    token_ids: Sequence[int]
    adapter: str
    """The specialist; empty for the base."""
    sampling: SamplingParams
    sources: Sequence[BlockSource] = ()
    num_earlier_output: int = 0
    prefill_only: bool = False
    await_landing: bool = False
    lease_from_block: int = 0
    lease_id: LeaseId | None = None
    adapter_digest: str = ""
    """What the specialist's name stood for when the turn began; empty takes what it stands for now."""
    adapter_mode: str = ""
    """The mode that it had then, likewise."""
    min_delta_tokens: int = 0
    """Tokens are told so many at a time, but for the first and the last."""

    @property
    def needs_weights(self) -> bool:
        """Of the specialist. The base needs none, nor does a shared specialist's prefill: the base alone writes it."""
        shared_prefill = self.prefill_only and self.adapter_mode != AdapterMode.PRIVATE
        return bool(self.adapter) and not shared_prefill
