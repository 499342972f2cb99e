import pytest
from icarus_gateway.placement import Candidate, Placement, choose, place, rank_sources

from icarus.types import WorkerId


def ids(counts: dict[str, int]) -> dict[WorkerId, int]:
    return {WorkerId(name): count for name, count in counts.items()}


def candidates(**loads: int) -> list[Candidate]:
    return [Candidate(WorkerId(name), load) for name, load in loads.items()]


@pytest.mark.parametrize(
    ("cached", "loads", "expected"),
    [
        ({}, {"d1": 0, "d2": 0}, "d1"),
        ({"d2": 16}, {"d1": 0, "d2": 0}, "d2"),
        ({"d1": 100, "d2": 128}, {"d1": 0, "d2": 0}, "d2"),
        ({"d2": 127}, {"d1": 0, "d2": 1}, "d1"),  # a request outweighs 128 cached tokens
        ({"d2": 129}, {"d1": 0, "d2": 1}, "d2"),
        ({"d2": 128}, {"d1": 0, "d2": 1}, "d1"),  # even: the lesser load
        ({"p1": 4096}, {"d1": 1, "d2": 0}, "d2"),  # not a candidate
    ],
)
def test_where_to_decode(cached, loads, expected):
    assert choose(candidates(**loads), ids(cached), load_penalty_tokens=128) == expected


def test_a_draw_goes_to_the_roomier():
    roomy = [Candidate(WorkerId("d1"), 0, 10), Candidate(WorkerId("d2"), 0, 11)]
    assert choose(roomy, {}, 128) == "d2"


@pytest.mark.parametrize(
    ("num_prompt", "cached", "prefill_loads", "expected"),
    [
        (255, {}, {"p1": 0}, None),
        (256, {}, {"p1": 0}, "p1"),
        (256, {}, {}, None),
        (1000, {"d1": 752}, {"p1": 0}, None),  # cached at the decode worker
        (1000, {"d2": 752}, {"p1": 0}, None),  # cached anywhere
        (1000, {"d2": 736}, {"p1": 0}, "p1"),
        (1000, {"p2": 64}, {"p1": 0, "p2": 0}, "p2"),
        (1000, {"p2": 64}, {"p1": 0, "p2": 1}, "p1"),
    ],
)
def test_whether_and_where_to_prefill(num_prompt, cached, prefill_loads, expected):
    placement = place(num_prompt, ids(cached), candidates(d1=0), candidates(**prefill_loads), 128, 256)
    assert placement == Placement(WorkerId("d1"), expected)


def test_sources():
    held = ids({"d1": 5, "d2": 9, "p1": 5, "x": 0, "a": 1, "b": 1, "c": 1})
    assert rank_sources(held, WorkerId("d2")) == ["d1", "p1", "a", "b"]
    assert rank_sources({}, WorkerId("d2")) == []
