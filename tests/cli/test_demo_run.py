"""`icarus demo` as a user runs it, on a tiny model: four real processes, NIXL between them."""

import json

import pytest
import tiny

from icarus.cli.main import main

BLOCK = 16


def run_demo(folder, *flags):
    model = tiny.tiny_llama(folder / "model", context=16384)
    argv = ["demo", f"--json={folder / 'demo.json'}", f"--model-path={model}", "--model-dtype=float32"]
    patient = folder / "icarus.toml"
    patient.write_text("[gateway]\nreport_wait_seconds = 10\n")
    argv.append(f"--config={patient}")
    assert (
        main([*argv, "--engine-num-threads=1", "--cache-num-blocks=4096", f"--log-dir={folder / 'logs'}", *flags]) == 0
    )
    return json.loads((folder / "demo.json").read_text())


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    return run_demo(tmp_path_factory.mktemp("demo"))


def computes_little(totals) -> bool:
    """At most a block a turn more than what is computed at all."""
    return totals["computed_tokens"] <= totals["unique_tokens"] + BLOCK * 8


def test_the_figures_are_not_in_doubt(figures):
    assert figures["notes"] == []


def test_every_turn_accounts_for_its_prompt(figures):
    shared, private = figures["turns"][:8], figures["turns"][8:]
    lengths = [turn["prompt_tokens"] for turn in shared]
    assert [turn["prompt_tokens"] for turn in private] == lengths == sorted(lengths) and lengths[0] > 1000
    for turn in [*shared, *private]:
        parts = turn["computed_tokens"] + turn["local_tokens"] + turn["remote_tokens"]
        assert parts == turn["prompt_tokens"] and turn["completion_tokens"] == 32


def test_the_chain_alternates_and_reads_what_others_wrote(figures):
    shared = figures["turns"][:8]
    assert [turn["decode_worker"] for turn in shared] == ["decode-0", "decode-1"] * 4
    assert shared[0]["prefill_worker"] == "prefill-0"
    for turn in shared[1:]:
        assert turn["remote_tokens"] > 0 and turn["nixl_reads"] > 0
        assert turn["cross_adapter_tokens"] == turn["local_tokens"] + turn["remote_tokens"]


def test_reuse_is_really_there(figures):
    shared, private = figures["totals"]["shared"], figures["totals"]["private"]
    ends = [turn["prompt_tokens"] + turn["completion_tokens"] - 1 for turn in figures["turns"][:8]]
    assert shared["unique_tokens"] == ends[-1] and private["unique_tokens"] == sum(ends)
    assert computes_little(shared)
    assert private["computed_tokens"] >= 5 * shared["computed_tokens"]
    assert private["kv_bytes_distinct"] >= 6 * shared["kv_bytes_distinct"] > 0
    assert private["kv_bytes_held"] > shared["kv_bytes_held"] >= shared["kv_bytes_distinct"]


def test_without_reuse_the_same_check_fails(tmp_path):
    totals = run_demo(tmp_path, "--no-cache-prefix-reuse")["totals"]["shared"]
    assert not computes_little(totals) and totals["computed_tokens"] > 5 * totals["unique_tokens"]
