import json

import pytest

OUTPUT, TURNS, WORKFLOWS = 4, 4, 3


@pytest.fixture(scope="module")
def react(tmp_path_factory):
    """A folder such as ReAct's, of our own words."""
    folder = tmp_path_factory.mktemp("react")
    steps = [f"Thought {i}: look further.\nObservation {i}: entry {i} of the list says so." for i in range(1, 9)]
    (folder / "prompts_naive.json").write_text(json.dumps({"webthink_simple": "\n".join(steps)}))
    questions = [{"question": f"Who wrote book {i}?", "answer": "nobody"} for i in range(9)]
    (folder / "hotpot_dev_v1_simplified.json").write_text(json.dumps(questions))
    return folder


@pytest.fixture(scope="module")
def figures(bench, on_tiny, react):
    lengths = ["--context-tokens=160", f"--output-tokens={OUTPUT}", "--observation-tokens=16", "--rank=4"]
    load = [f"--workflows={WORKFLOWS}", f"--turns={TURNS}", "--agents=1,4", "--evicting-agents=2"]
    opened = [f"--data={react}", "--rates=40", "--open-workflows=2", "--open-observation-tokens=48"]
    return bench("agents", *on_tiny, *lengths, *load, *opened)


def find(figures, loop, mode, num_specialists, kv="ample"):
    key = (loop, mode, num_specialists, kv)
    (found,) = [
        each
        for each in figures["results"]["cases"]
        if (each["loop"], each["mode"], each["num_specialists"], each["kv"]) == key
    ]
    return found


def test_nothing_is_in_doubt(figures):
    assert figures["notes"] == [] and len(figures["results"]["cases"]) == 10


def test_every_case_accounts_for_its_tokens(figures):
    for case in figures["results"]["cases"]:
        turns, cache = case["turns"], case["cache"]
        assert turns["num_turns"] == TURNS * (WORKFLOWS if case["loop"] == "closed" else 2)
        parts = turns["computed_tokens"] + turns["local_tokens"] + turns["remote_tokens"]
        assert parts == turns["prompt_tokens"] > 0
        assert turns["every"]["p95"] >= turns["every"]["p50"] >= turns["every"]["first_token_p50"] > 0
        # Of an answer's tokens the last one has no KV when its turn ends; preempted turns write some twice.
        written = turns["computed_tokens"] + (OUTPUT - 1) * turns["num_turns"]
        assert cache["kv_written_tokens"] == written or cache["preemptions"]


def test_one_specialist_reuses_as_much_privately(figures):
    for loop in ("closed", "open"):
        shared, private = (find(figures, loop, mode, 1) for mode in ("shared", "private"))
        assert shared["turns"]["computed_tokens"] == private["turns"]["computed_tokens"]


def test_four_private_specialists_compute_every_turn_anew(figures):
    shared, private = (find(figures, "closed", mode, 4) for mode in ("shared", "private"))
    assert private["turns"]["hit_rate"] == 0 and shared["turns"]["hit_rate"] > 0.6
    assert shared["turns"]["cross_adapter_tokens"] > 0 == private["turns"]["cross_adapter_tokens"]
    assert private["cache"]["kv_bytes_held"] > 3 * shared["cache"]["kv_bytes_held"]
    assert find(figures, "open", "private", 4)["turns"]["computed_tokens"] > shared["turns"]["computed_tokens"]


def test_tight_kv_evicts_what_private_specialists_would_come_back_to(figures):
    shared, private = (find(figures, "closed", mode, 2, "tight") for mode in ("shared", "private"))
    assert shared["cache"]["evicted_blocks"] == 0 < private["cache"]["evicted_blocks"]
    assert private["turns"]["hit_rate"] < 0.2 and shared["turns"]["hit_rate"] > 0.6


def test_the_papers_table_stands_beside_ours(figures):
    rows = {row["num_specialists"]: row for row in figures["results"]["paper"]}
    assert rows[8]["paper"] == {"throughput": 3.8, "p95_latency": 11.1} and rows[1]["paper"]["throughput"] is None
    ratio = next(
        each
        for each in figures["results"]["shared_over_private"]
        if (each["loop"], each["num_specialists"], each["kv"]) == ("closed", 4, "ample")
    )
    assert rows[4]["closed"]["throughput"] == ratio["throughput"] > 0 and rows[2]["open"]["throughput"] is None
