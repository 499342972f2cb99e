from collections import Counter

import pytest
from icarus_benchmarks.agents.open_loop import ROUND_ROBIN, SKEWED, arrivals, route
from icarus_benchmarks.workload import ChainJob

MODELS = ["a", "b", "c", "d"]


def test_arrivals_are_the_same_at_every_run_and_come_at_the_rate():
    times = arrivals(2000, 4.0, seed=0)
    assert times == arrivals(2000, 4.0, seed=0) != arrivals(2000, 4.0, seed=1)
    assert times[0] == 0 and times == sorted(times)
    assert times[-1] == pytest.approx(2000 / 4.0, rel=0.1)


def test_round_robin_is_even_and_skewed_gives_one_half_of_the_turns():
    turns = [(workflow, turn) for workflow in range(250) for turn in range(8)]
    even = Counter(route(ROUND_ROBIN, MODELS, *each) for each in turns)
    assert set(even.values()) == {500}
    skewed = Counter(route(SKEWED, MODELS, *each) for each in turns)
    assert skewed["a"] == pytest.approx(1000, rel=0.1)
    assert all(skewed[name] == pytest.approx(333, rel=0.2) for name in "bcd")


def test_what_a_job_keeps_is_what_its_caches_saw_last():
    job = ChainJob(num_workflows=2, num_turns=3, context_tokens=10, output_tokens=2, observation_tokens=4)
    assert [job.prompt_tokens(turn) for turn in range(3)] == [10, 16, 22] and job.longest_history == 24
    assert job.kv_tokens(1) == 2 * 24 and job.kv_tokens(2) == 2 * (24 + 18)
    assert job.kv_tokens(8) == job.kv_tokens(3) == 2 * (24 + 18 + 12)
