"""The scripts behind docs/accuracy.md, on small made-up runs."""

import importlib.util
import json
from pathlib import Path

import pytest
from tiny import tiny_adapter, tiny_llama

from icarus.adapters.metadata import AdapterMetadata, write_metadata
from icarus.evaluation.oracle import Oracle, load_oracle
from icarus.model.digest import base_digest
from icarus.training.settings import DEFAULT_TARGETS
from icarus.types import AdapterMode

FOLDER = Path(__file__).parents[2] / "examples" / "specialists"


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def build(tmp_path) -> Path:
    """Of 100 examples ICaRus has one more right than conventional, for one task; another task is not complete."""
    right = {"base": 0, "conventional": 80, "icarus": 81}
    for name in ("scores", "losses"):
        (tmp_path / name).mkdir()
    for method, num_right in right.items():
        examples = [{"score": float(index < num_right)} for index in range(100)]
        report = {
            "score": {"mean": num_right / 100},
            "answer_loss": None,
            "num_examples": 100,
            "examples": examples,
        }
        (tmp_path / "scores" / f"{method}-banking.json").write_text(json.dumps(report))
        losses = {"answer_loss": 0.5, "examples": [{"score": 0.0}]}
        (tmp_path / "losses" / f"{method}-banking.json").write_text(json.dumps(losses))
    (tmp_path / "scores" / "icarus-tools.json").write_text("{}")
    for method, seconds in (("conventional", 2.0), ("icarus", 1.0)):
        (tmp_path / method / "banking").mkdir(parents=True)
        steps = [
            {"step": n, "loss": 1 / n, "tokens": 100, "seconds": seconds, "validation_loss": 0.1 if n == 20 else None}
            for n in range(1, 21)
        ]
        text = "".join(json.dumps(step) + "\n" for step in steps)
        (tmp_path / method / "banking" / "log.jsonl").write_text(text)
    return tmp_path


def test_tables(build):
    report = load_script("report")
    scores = report.read_scores(build)
    assert list(scores) == ["banking"]
    rows = report.table(scores).splitlines()
    assert rows[2].startswith("| banking | 100 | 0.0% | 80.0% | 81.0% | +1.0 [+0.0, +3.0] |")
    assert rows[3].startswith("| mean of 1 | | | | | +1.0 [")
    assert report.throughput(build, ["banking"]).splitlines()[2] == "| banking | 50 | 100 | 2.00 |"


def test_runs_of_two_machines_are_not_compared(build, tmp_path):
    report = load_script("report")
    machines = {"conventional": {"banking": "a CPU"}, "icarus": {"banking": "a GPU"}}
    (build / report.MACHINES).write_text(json.dumps(machines))
    report.keep(build, ["banking"], tmp_path / "kept")
    for folder in (build, tmp_path / "kept"):
        assert (
            report.throughput(folder, ["banking"]).splitlines()[2] == "| banking | 50 | 100 | none: a CPU and a GPU |"
        )


def test_what_is_kept_gives_the_same_tables(build, tmp_path):
    report = load_script("report")
    report.keep(build, ["banking"], tmp_path / "kept")
    assert report.table(report.read_scores(tmp_path / "kept")) == report.table(report.read_scores(build))
    assert report.throughput(tmp_path / "kept", ["banking"]) == report.throughput(build, ["banking"])


def test_the_mean_weighs_tasks_alike():
    report = load_script("report")
    few, many = report.np.array([1.0, 1.0]), report.np.zeros(1000)
    assert report.mean_of_tasks([few, many]).mean == 0.5


def test_first_token_from_the_base(tmp_path):
    base = tiny_llama(tmp_path / "base")
    tiny_adapter(tmp_path / "a", base, seed=5, targets=DEFAULT_TARGETS[AdapterMode.SHARED])
    write_metadata(tmp_path / "a", AdapterMetadata(AdapterMode.SHARED, base_digest(base)))
    model = load_oracle(base, tmp_path / "a", "float32")
    prompts = [list(range(5, 25)), list(range(40, 52))]
    ablated = load_script("first_token").FirstTokenFromBase(model, AdapterMode.SHARED, [])
    own, base_only = (Oracle(model, mode, []) for mode in (AdapterMode.SHARED, None))
    for prompt in prompts:
        first = base_only.generate([prompt], 1)[0]
        assert own.generate([prompt], 1)[0] != first, "the two must differ for this test to say anything"
        assert ablated.generate([prompt], 8)[0] == first + own.generate([prompt + first], 7)[0]
