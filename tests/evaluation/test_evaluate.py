"""`icarus eval`: through real processes and through the oracle, with the same scores."""

import json

import pytest
from tiny import tiny_adapter
from training.conftest import chat_line, write_lines

from icarus.adapters.metadata import AdapterMetadata, write_metadata
from icarus.cli import main as cli
from icarus.evaluation.oracle import Oracle, load_oracle
from icarus.model.digest import base_digest
from icarus.training.lora_model import load_base
from icarus.training.settings import DEFAULT_TARGETS
from icarus.types import AdapterMode


def make_adapter(folder, base, mode):
    tiny_adapter(folder, base, seed=5, targets=DEFAULT_TARGETS[mode])
    write_metadata(folder, AdapterMetadata(mode, base_digest(base)))
    return folder


@pytest.mark.parametrize("mode", [None, *AdapterMode])
def test_a_batch_of_the_oracle_answers_as_each_alone(base, tmp_path, mode):
    model = (
        load_oracle(base, make_adapter(tmp_path / "a", base, mode), "float32")
        if mode
        else load_base(base, "float32", 0)
    )
    oracle = Oracle(model, mode, end_ids=[77])
    prompts = [list(range(5, 5 + n)) for n in (3, 9, 1)]
    together = oracle.generate(prompts, 12)
    assert together == [oracle.generate([prompt], 12)[0] for prompt in prompts]


def test_the_serving_path_and_the_oracle_agree(base, data, tmp_path, capsys):
    adapter = make_adapter(tmp_path / "a", base, AdapterMode.SHARED)
    argv = ["eval", "--model", str(base), "--adapter", str(adapter), "--data", str(data), "--metric", "exact"]
    argv += ["--max-tokens", "8", "--limit", "12", "--model-dtype", "float32", "--engine-num-threads", "1"]
    reports = {}
    for name, more in (("gateway", ["--card", "--nll"]), ("oracle", ["--oracle"])):
        assert cli.main([*argv, "--json", str(tmp_path / name), *more]) == 0, capsys.readouterr().err
        reports[name] = json.loads((tmp_path / name).read_text())
    served, reference = reports["gateway"], reports["oracle"]
    assert served["examples"] == reference["examples"] and len(served["examples"]) == 12
    assert served["completion_tokens"] == reference["completion_tokens"] > 12
    assert served["prompt_tokens"] == reference["prompt_tokens"]
    assert 3 < served["answer_loss"] < 20 and reference["answer_loss"] is None
    assert "train.jsonl: exact 0.0% [0.0%, 0.0%] over 12 examples" in (adapter / "README.md").read_text()


def test_the_base_of_a_config_file_has_a_score_and_a_loss_too(base, data, tmp_path, capsys):
    config = tmp_path / "own.toml"
    config.write_text(f'[model]\npath = "{base}"\n')
    argv = [
        "eval",
        "--config",
        str(config),
        "--data",
        str(data),
        "--metric",
        "exact",
        "--max-tokens",
        "4",
        "--limit",
        "3",
    ]
    argv += ["--model-dtype", "float32", "--oracle", "--nll", "--json", str(tmp_path / "report")]
    assert cli.main(argv) == 0, capsys.readouterr().err
    report = json.loads((tmp_path / "report").read_text())
    assert (report["adapter"], report["model"]) == ("", str(base)) and 3 < report["answer_loss"] < 20


def test_an_example_that_the_gateway_refuses_is_named(base, tmp_path, capsys):
    data = write_lines(tmp_path / "d.jsonl", [chat_line("red", "red"), chat_line("red " * 600, "red")])
    argv = ["eval", "--model", str(base), "--data", str(data), "--metric", "exact", "--model-dtype", "float32"]
    assert cli.main([*argv, "--engine-num-threads", "1"]) == 2
    assert "icarus: error: the example in line 2: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--card"], "give --adapter"),
        (["--limit", "0"], "--limit is 0; it must be at least 1"),
        (["--in-flight", "-1"], "--in-flight is -1; it must be at least 1"),
        (["--oracle", "--gateway", "x:1"], "not both"),
        (["--gateway", "x:1", "--model", "m", "--cache-num-blocks", "9"], "leave out --model, --cache-num-blocks"),
        (["--gateway", "x:1", "--nll", "--model", "m", "--engine-num-threads", "1"], "leave out --engine-num-threads"),
    ],
)
def test_bad_flags(data, more, reason, capsys):
    assert cli.main(["eval", "--data", str(data), "--metric", "exact", *more]) == 2
    assert reason in capsys.readouterr().err
