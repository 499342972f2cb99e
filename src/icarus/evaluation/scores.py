"""Scores of one answer against the right one, and of a test set. Free of torch."""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Metric = Callable[[str, str], float]
"""(prediction, reference) -> score in [0, 1]."""

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
_FINAL_ANSWER = "####"
_NUM_RESAMPLES = 2000


def exact(prediction: str, reference: str) -> float:
    """The same text, but for white space around it."""
    return float(prediction.strip() == reference.strip())


def label(prediction: str, reference: str) -> float:
    """The same name, whatever its case, and with spaces, hyphens or underscores."""
    return float(_plain_label(prediction) == _plain_label(reference))


def json_equal(prediction: str, reference: str) -> float:
    """The same JSON value: order of keys and white space do not count, text around it does."""
    try:
        return float(_typed(json.loads(prediction)) == _typed(json.loads(reference)))
    except (ValueError, RecursionError):
        return 0.0


def number(prediction: str, reference: str) -> float:
    """The same final number: the first after "####", or else the last one. Thousands separators do not count."""
    found, expected = _final_number(prediction), _final_number(reference)
    return float(found is not None and expected is not None and math.isclose(found, expected, rel_tol=1e-9))


METRICS: dict[str, Metric] = {"exact": exact, "json": json_equal, "number": number, "label": label}


@dataclass(frozen=True)
class Score:
    """A mean and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.1%} [{self.low:.1%}, {self.high:.1%}]"


def mean_score(scores: Sequence[float], seed: int = 0) -> Score:
    """Percentile bootstrap over the examples. Of two methods' differences, example by example, it is the paired one."""
    values = np.asarray(scores, dtype=np.float64)
    generator = np.random.default_rng(seed)
    means = [values[generator.integers(len(values), size=len(values))].mean() for _ in range(_NUM_RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return Score(float(values.mean()), float(low), float(high))


def _plain_label(text: str) -> str:
    return re.sub(r"[\s_-]+", " ", text).strip().casefold()


def _typed(value: Any) -> Any:
    """Python has True == 1; JSON has not."""
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_typed(item) for item in value]
    return (isinstance(value, bool), value)


def _final_number(text: str) -> float | None:
    _, marker, after = text.rpartition(_FINAL_ANSWER)
    numbers = _NUMBER.findall(after if marker else text)
    return float(numbers[0 if marker else -1].replace(",", "")) if numbers else None
