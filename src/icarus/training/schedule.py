"""The learning rate, a pure function of the step."""

import math
from collections.abc import Callable, Mapping

SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
    "constant": lambda progress: 1.0,
}
"""What is left of the highest rate, by the share of the steps after the warm-up that is done."""


def learning_rate(step: int, num_steps: int, highest: float, warmup: float, schedule: str) -> float:
    """Rises over the first `warmup` share of the steps, then follows one of SCHEDULES. Steps count from 0."""
    num_warmup = math.ceil(warmup * num_steps)
    if step < num_warmup:
        return highest * (step + 1) / num_warmup
    progress = (step - num_warmup) / max(num_steps - num_warmup, 1)
    return highest * SCHEDULES[schedule](progress)
