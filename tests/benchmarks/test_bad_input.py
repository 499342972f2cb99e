"""One line that names the thing, and exit code 2, before anything starts."""

import json

import pytest

from icarus.cli.main import main


def refused(capsys, *argv: str) -> str:
    assert main(["bench", *argv]) == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err and err.count("\n") == 1 and err.startswith("icarus: error: ")
    return err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["agents", "--rates=0"], ["--rates", "'0'"]),
        (["agents", "--rates=1,fast"], ["--rates", "'fast'"]),
        (["agents", "--agents=0"], ["--agents", "'0'"]),
        (["agents", "--num-prefill=-1"], ["--num-prefill"]),
        (["agents", "--data=/nowhere"], ["/nowhere/prompts_naive.json", "--data"]),
        (["engine", "--batches="], ["--batches"]),
        (["engine", "--model-path=/nowhere/model"], ["/nowhere/model"]),
        (["engine", "--json=/nowhere/figures.json"], ["--json", "/nowhere/figures.json"]),
        (["transfer", "--plot=curves.txt"], ["--plot", "curves.txt", "png"]),
        (["peer", "--peer=/nowhere", "--installed=/nowhere"], ["--peer", "/nowhere", "serve.sh"]),
        (["peer", "--peer=/nowhere"], ["--installed"]),
        (["fly"], ["fly"]),
    ],
)
def test_a_mistake_is_one_line(argv, words, capsys):
    line = refused(capsys, *argv)
    assert all(word in line for word in words)


def test_data_of_another_kind_is_named(tmp_path, capsys):
    (tmp_path / "prompts_naive.json").write_text("[]")
    assert "holds a list, not a dict" in refused(capsys, "agents", f"--data={tmp_path}")
    (tmp_path / "prompts_naive.json").write_text(json.dumps({"webthink_simple": "Observation 1: yes"}))
    (tmp_path / "hotpot_dev_v1_simplified.json").write_text('[{"answer": "no"}]')
    assert "an entry without a question" in refused(capsys, "agents", f"--data={tmp_path}")
