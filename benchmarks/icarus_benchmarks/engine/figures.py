"""What `icarus bench engine` is asked for, and what it finds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineJob:
    """What is measured."""

    prefill_tokens: int
    batches: tuple[int, ...]
    decode_context: int
    """Tokens of each prompt at `batches`."""
    paired_batch: int
    paired_context: int
    num_steps: int
    """Timed decode steps of each kind."""
    repetitions: int
    """Timed prefills of each kind."""
    num_specialists: int
    rank: int
    random_weights: str
    """A name of SHAPES, whose weights are drawn; empty for the model in the settings."""


@dataclass(frozen=True)
class PrefillFigures:
    """From a prompt to its first token."""

    kind: str
    num_tokens: int
    seconds: float
    tokens_per_second: float
    all_seconds: tuple[float, ...]


@dataclass(frozen=True)
class DecodeFigures:
    """A step in which every request of the batch gets a token."""

    kind: str
    batch: int
    context: int
    step_seconds: float
    step_seconds_p95: float
    tokens_per_second: float
    kv_bytes: int
    """Of the pool that the batch was in."""


@dataclass(frozen=True)
class MemoryFigures:
    """Bytes."""

    resident_with_model: int
    """Of the process with the base model; mapped weights count once they were read."""
    resident_with_specialists: int
    resident_at_end: int
    kv_per_token: int
