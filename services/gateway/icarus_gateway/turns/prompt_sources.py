"""Where the KV of a turn's prompt came from, as its last attempt tells."""

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

    @property
    def cross_adapter(self) -> int:
        return sum(self.written_under.values())


def prompt_sources(message: pb.PromptUsage, num_resumed: int) -> PromptSources:
    """`num_resumed` tokens at the end of the attempt's prompt are output of an earlier attempt, no part of the turn's
    prompt: they are deducted."""
    parts = (message.computed_tokens, message.remote_tokens, message.local_tokens)
    computed, remote, local = _deduct(num_resumed, parts)
    return PromptSources(computed, local, remote, _at_most(local + remote, message.written_under))


def _deduct(amount: int, parts: Iterable[int]) -> list[int]:
    """Takes `amount` away from the first part, what it lacks from the second, and so on."""
    rest = []
    for part in parts:
        taken = min(amount, part)
        amount -= taken
        rest.append(part - taken)
    return rest


def _at_most(total: int, written: Iterable[pb.WrittenTokens]) -> dict[str, int]:
    kept: dict[str, int] = {}
    for entry in written:
        if taken := min(entry.tokens, total):
            kept[entry.writer] = taken
            total -= taken
    return kept
