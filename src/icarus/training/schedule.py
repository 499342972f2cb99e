"""The learning rate, a pure function of the step."""

import math


def learning_rate(step: int, num_steps: int, highest: float, warmup: float) -> float:
    """Rises over the first `warmup` share of the steps, then falls on a cosine to 0. Steps count from 0."""
    num_warmup = math.ceil(warmup * num_steps)
    if step < num_warmup:
        return highest * (step + 1) / num_warmup
    progress = (step - num_warmup) / max(num_steps - num_warmup, 1)
    return highest * 0.5 * (1 + math.cos(math.pi * progress))
