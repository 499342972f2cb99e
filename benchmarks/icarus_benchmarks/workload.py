"""What is asked of a server: token ids and jobs, the same at every run."""

import random
from dataclasses import dataclass

_LOWEST_ID = 100
"""Below are special tokens, in most vocabularies."""


def random_ids(seed: object, count: int, vocab_size: int) -> list[int]:
    """`count` token ids that depend on `seed` alone."""
    draw = random.Random(repr(seed))
    return [draw.randrange(min(_LOWEST_ID, vocab_size - 1), vocab_size) for _ in range(count)]


@dataclass(frozen=True)
class ChainJob:
    """Workflows that run side by side, each a chain of turns over one growing context. All but the first two in tokens.

    Turn t goes to specialist t mod N with the whole context so far.
    """

    num_workflows: int
    num_turns: int
    """Of each workflow."""
    context_tokens: int
    output_tokens: int
    observation_tokens: int
    min_delta_tokens: int = 1
    """The fewest of an answer that come together."""

    @property
    def longest_history(self) -> int:
        """The last turn's answer included."""
        return self.prompt_tokens(self.num_turns - 1) + self.output_tokens

    def prompt_tokens(self, turn: int) -> int:
        """Length of a turn's prompt; turns count from 0."""
        return self.context_tokens + turn * (self.output_tokens + self.observation_tokens)

    def kv_tokens(self, num_caches: int) -> int:
        """Positions that are held at the end when nothing is evicted: each of `num_caches` caches keeps the longest
        history that it saw of each workflow."""
        last_turns = range(max(0, self.num_turns - num_caches), self.num_turns)
        return self.num_workflows * sum(self.prompt_tokens(turn) + self.output_tokens for turn in last_turns)
