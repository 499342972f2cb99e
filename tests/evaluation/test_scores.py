import pytest

from icarus.evaluation.scores import METRICS, mean_score


@pytest.mark.parametrize(
    ("metric", "prediction", "reference", "score"),
    [
        ("exact", " yes\n", "yes", 1),
        ("exact", "Yes", "yes", 0),
        ("label", "Card_Arrival ", "card arrival", 1),
        ("label", "card arrivals", "card arrival", 0),
        ("json", '{"b": [1, "x"], "a": 1.0}', '{"a": 1, "b": [1, "x"]}', 1),
        ("json", '{"a": true}', '{"a": 1}', 0),
        ("json", '{"a": ["x", "y"]}', '{"a": ["y", "x"]}', 0),
        ("json", 'Sure: {"a": 1}', '{"a": 1}', 0),
        ("json", '{"a": 1', '{"a": 1}', 0),
        ("json", "[" * 100_000, "[]", 0),
        ("number", "so 12 + 3 = 15.", "15 apples are left\n#### 15", 1),
        ("number", "#### 1,234 of 5", "#### 1234", 1),
        ("number", "it costs $-3.50", "#### -3.5", 1),
        ("number", "#### 14", "#### 15", 0),
        ("number", "no idea", "#### 15", 0),
    ],
)
def test_metrics(metric, prediction, reference, score):
    assert METRICS[metric](prediction, reference) == score


def test_the_interval_is_the_binomials():
    score = mean_score([1.0] * 300 + [0.0] * 100)
    assert score.mean == 0.75
    half = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert score.low == pytest.approx(0.75 - half, abs=0.006) and score.high == pytest.approx(0.75 + half, abs=0.006)
    assert mean_score([1.0] * 300 + [0.0] * 100) == score
    assert mean_score([1.0]).low == mean_score([1.0]).high == 1.0
