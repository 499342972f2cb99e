"""Our side of the comparison, end to end, with a stand-in for the peer's driver: vLLM is too large for a suite."""

import shutil
import sys
from pathlib import Path

import pytest
import tiny

from icarus.cli.main import main


@pytest.fixture(scope="module")
def peer(tiny_base, tmp_path_factory) -> list[str]:
    scripts, installed = tmp_path_factory.mktemp("scripts"), tmp_path_factory.mktemp("installed")
    shutil.copy(Path(__file__).with_name("stand_in_workload.py"), scripts / "workload.py")
    (scripts / "serve.sh").write_text("echo 'no wheel fits' >&2; exit 1\n")
    (installed / "venv" / "bin").mkdir(parents=True)
    (installed / "venv" / "bin" / "python").symlink_to(sys.executable)
    (installed / "model").symlink_to(tiny_base)
    for index in range(8):
        tiny.tiny_adapter(installed / "lora_nokv" / f"a{index}", tiny_base, seed=index)
    small = ["--model-dtype=float32", "--engine-num-threads=1", "--kv-gib=0.01"]
    return [f"--peer={scripts}", f"--installed={installed}", *small]


def test_the_same_jobs_run_against_icarus(bench, peer):
    results = bench("peer", *peer, "--server=icarus", "--workflows=2", "--turns=3")["results"]
    runs = {run["job"]: run["figures"]["played"] for run in results["runs"]}
    assert list(runs)[-1] == "agents:multi:multi:2:3" and len(runs) == 6 and results["ratios"] == []
    shared = runs["agents:multi:multi:2:3"]
    assert shared["cached"] == [0, 48, 0] and shared["computed"] == 48 + 4 + 48  # a7 reads what a0 wrote


def test_a_server_that_fails_costs_its_own_figures_alone(bench, peer):
    report = bench("peer", *peer, "--server=fast", "--server=icarus", "--workflows=2", "--turns=3")
    assert {run["server"] for run in report["results"]["runs"]} == {"icarus"}
    assert report["notes"][0].startswith("vLLM fast was not measured: vLLM (fast) did not come up")


def test_where_no_server_comes_up_the_command_fails(peer, capsys):
    assert main(["bench", "peer", *peer, "--server=fast"]) == 1
    assert "vLLM (fast) did not come up" in (err := capsys.readouterr().err) and "no wheel fits" in err
