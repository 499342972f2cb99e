"""Where the KV of a turn's prompt came from, as its attempts tell."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from icarus.worker.v1 import decode_service_pb2 as pb


@dataclass(frozen=True)
class PromptSources:
    """In prompt tokens, which the first three sum to."""

    computed: int = 0
    local: int = 0
    remote: int = 0
    written_under: Mapping[str, int] = field(default_factory=dict)
    """Of local and remote, by the other specialist whose turn wrote them first ("" for the base)."""

    def capped(self, num_found: int) -> "PromptSources":
        """With at most `num_found` tokens from caches: what else was found there, this turn had computed before."""
        excess = max(0, self.local + self.remote - num_found)
        remote, local = _deduct(excess, (self.remote, self.local))
        return PromptSources(self.computed + excess, local, remote, _at_most(local + remote, self.written_under))

    @property
    def cross_adapter(self) -> int:
        return sum(self.written_under.values())


def prompt_sources(message: pb.PromptUsage, num_resumed: int) -> PromptSources:
    """`num_resumed` tokens at the end of the attempt's prompt are output of an earlier attempt, no part of the turn's
    prompt: they are deducted."""
    parts = (message.computed_tokens, message.remote_tokens, message.local_tokens)
    computed, remote, local = _deduct(num_resumed, parts)
    written_under = {entry.writer: entry.tokens for entry in message.written_under}
    return PromptSources(computed, local, remote, _at_most(local + remote, written_under))


def _deduct(amount: int, parts: Iterable[int]) -> list[int]:
    """Takes `amount` away from the first part, what it lacks from the second, and so on."""
    rest = []
    for part in parts:
        taken = min(amount, part)
        amount -= taken
        rest.append(part - taken)
    return rest


def _at_most(total: int, written: Mapping[str, int]) -> dict[str, int]:
    kept: dict[str, int] = {}
    for writer, tokens in written.items():
        if taken := min(tokens, total):
            kept[writer] = taken
            total -= taken
    return kept
