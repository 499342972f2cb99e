"""What a run tells, and to whom."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StepFigures:
    """One step. All but `seconds` are the same in every run with these settings and data."""

    step: int
    """Counts from 1."""
    epoch: float
    loss: float
    """Nats an answer token."""
    learning_rate: float
    grad_norm: float
    tokens: int
    """Of prompts and answers, without padding."""
    answer_tokens: int
    seconds: float
    validation_loss: float | None = None


class Observer:
    """Told how a run goes; this one does nothing with it."""

    def note(self, line: str) -> None:
        """Something that the user should know."""

    def begin(self, num_done: int, num_steps: int) -> None:
        """The first step is near; after a checkpoint `num_done` are done."""

    def step(self, figures: StepFigures) -> None:
        """A step is done."""
