"""Order statistics of small samples."""

from collections.abc import Iterable


def percentile(values: Iterable[float], percent: float) -> float:
    """Linear between the two nearest ranks, as numpy's default. NaN of nothing."""
    ranked = sorted(values)
    if not ranked:
        return float("nan")
    rank = (len(ranked) - 1) * percent / 100
    below = int(rank)
    above = min(below + 1, len(ranked) - 1)
    return ranked[below] + (ranked[above] - ranked[below]) * (rank - below)


def median(values: Iterable[float]) -> float:
    return percentile(values, 50)
