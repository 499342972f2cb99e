"""Evaluations at a gateway that runs already: each leaves it as it was, whatever else goes on there."""

import asyncio
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest
from client.scripted_gateway import ScriptedGateway
from training.conftest import write_lines
from waiting import wait_until

from icarus.cli import evaluate as command
from icarus.cli import main as cli
from icarus.errors import InvalidInputError, NotFoundError, UnavailableError
from icarus.evaluation.through_gateway import answer_all
from icarus.training.records import Record
from icarus.v1 import generation_service_pb2, model_service_pb2


@pytest.fixture
def gateway() -> Iterator[ScriptedGateway]:
    with ScriptedGateway() as scripted:
        yield scripted


async def evaluate(gateway, adapter, text, warnings=None) -> int:
    warnings = [] if warnings is None else warnings
    records = [Record(text, "", 1)]
    answers, _ = await answer_all(gateway.address, str(adapter), records, 4, 1, lambda count: None, warnings.append)
    return len(answers)


async def test_two_of_one_folder_do_not_meet(gateway, tmp_path):
    together = evaluate(gateway, tmp_path, "slow"), evaluate(gateway, tmp_path, "quick")
    assert await asyncio.gather(*together) == [1, 1]
    loads = [request for request in gateway.requests if isinstance(request, model_service_pb2.LoadAdapterRequest)]
    assert len({request.name for request in loads}) == 2 and {request.path for request in loads} == {str(tmp_path)}
    assert list(gateway.models) == ["base"]


async def test_what_ends_it_is_told_where_nothing_was_loaded(gateway, tmp_path, monkeypatch):
    async def refuse(*args, **kwargs):
        raise NotFoundError("no such folder")

    monkeypatch.setattr("icarus.client.AsyncClient.load_adapter", refuse)
    with pytest.raises(NotFoundError, match="no such folder"):
        await evaluate(gateway, tmp_path, "quick")


async def test_what_is_neither_a_name_nor_a_folder_is_told_the_names(gateway, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gateway.load("triage")
    with pytest.raises(InvalidInputError, match=r"'triag' is neither a name that .* serves \(base, triage\) nor a f"):
        await evaluate(gateway, "triag", "quick")
    assert await evaluate(gateway, "/where/the/workers/are", "quick") == 1
    (tmp_path / "triag").mkdir()
    assert await evaluate(gateway, "triag", "quick") == 1
    loads = [request.path for request in gateway.requests if isinstance(request, model_service_pb2.LoadAdapterRequest)]
    assert loads == ["/where/the/workers/are", str(tmp_path / "triag")]


@pytest.fixture
def no_unload(monkeypatch):
    """As while a worker that has the adapter cannot be reached."""

    async def refuse(*args, **kwargs):
        raise UnavailableError("is on d1, which cannot be reached now")

    monkeypatch.setattr("icarus.client.AsyncClient.unload_adapter", refuse)


async def test_answers_outlive_an_adapter_that_cannot_be_unloaded(gateway, tmp_path, no_unload):
    warnings = []
    assert await evaluate(gateway, tmp_path, "quick", warnings) == 1
    (warning,) = warnings
    assert list(gateway.models)[1] in warning and "d1, which cannot be reached now" in warning


async def test_what_ends_it_is_told_where_nothing_can_be_unloaded(gateway, tmp_path, no_unload):
    warnings = []
    with pytest.raises(InvalidInputError, match="the example in line 1"):
        await evaluate(gateway, tmp_path, "invalid", warnings)
    assert len(warnings) == 1


def test_what_is_left_at_the_gateway_is_told(gateway, tmp_path, no_unload, capsys):
    data = write_lines(tmp_path / "d.jsonl", [{"prompt": "a", "completion": "x"}])
    argv = ["eval", "--gateway", gateway.address, "--data", str(data), "--metric", "exact", "--adapter", str(tmp_path)]
    assert cli.main(argv) == 0
    left = list(gateway.models)[1]
    assert capsys.readouterr().err.startswith(f"icarus: warning: adapter '{left}' may be loaded still")


def test_a_score_in_a_pipe_is_one_line(gateway, tmp_path, capsys):
    data = write_lines(tmp_path / f"{'long' * 20}.jsonl", [{"prompt": "a", "completion": "x"}])
    assert cli.main(["eval", "--gateway", gateway.address, "--data", str(data), "--metric", "exact"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("greedy, through the gateway")


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_that_is_stopped_leaves_nothing_loaded(gateway, tmp_path, stop, code):
    data = write_lines(tmp_path / "d.jsonl", [{"prompt": "endless", "completion": "x"}])
    command = [sys.executable, "-m", "icarus.cli.main", "eval", "--gateway", gateway.address, "--metric", "exact"]
    command += ["--adapter", str(tmp_path), "--data", str(data)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        asked = generation_service_pb2.GenerateRequest
        wait_until(lambda: any(isinstance(request, asked) for request in gateway.requests), 60)
        assert len(gateway.models) == 2
        process.send_signal(stop)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err, list(gateway.models)) == (code, "", ["base"])


def test_a_card_that_cannot_be_written_is_known_before_the_answers(gateway, tmp_path, capsys):
    data = write_lines(tmp_path / "d.jsonl", [{"prompt": "a", "completion": "x"}])
    argv = ["eval", "--gateway", gateway.address, "--data", str(data), "--metric", "exact", "--card"]
    argv += ["--adapter", str(tmp_path)]
    card = tmp_path / "README.md"
    card.mkdir()
    assert cli.main(argv) == 2
    assert f"--card {card} cannot be written: Is a directory" in capsys.readouterr().err and not gateway.requests
    card.rmdir()
    assert cli.main(argv) == 0
    assert card.read_text().startswith(f"# {tmp_path.name}\n\n## Scores\n\n- d.jsonl: exact")


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ([], "give --model, the base that {address} serves"),
        (["--model", "a/b"], "the loss of 'b' (--model a/b), but {address} serves 'base'"),
    ],
)
def test_a_loss_of_another_base_is_refused(gateway, tmp_path, capsys, more, reason):
    data = write_lines(tmp_path / "d.jsonl", [{"prompt": "a", "completion": "x"}])
    argv = ["eval", "--gateway", gateway.address, "--data", str(data), "--metric", "exact", "--nll", *more]
    assert cli.main(argv) == 2
    assert reason.format(address=gateway.address) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "use"), [(["--nll", "--model", "a/base"], "--nll computes with"), (["--card"], "--card writes into")]
)
def test_the_folder_of_an_adapter_that_is_a_name_is_refused(gateway, tmp_path, capsys, monkeypatch, more, use):
    monkeypatch.chdir(tmp_path)
    gateway.load("triage")
    data = write_lines(tmp_path / "d.jsonl", [{"prompt": "a", "completion": "x"}])
    argv = ["eval", "--gateway", gateway.address, "--data", str(data), "--metric", "exact", *more]
    argv += ["--adapter", "triage"]
    assert cli.main(argv) == 2
    assert f"{use} the adapter's folder, and triage is none" in capsys.readouterr().err
    (tmp_path / "triage").mkdir()  # whose weights are another's, for all that is known
    assert cli.main(argv) == 2
    assert f"{use} the adapter's folder, but triage is a name that {gateway.address}" in capsys.readouterr().err


def test_a_loss_of_the_served_base_is_reported(gateway, base, tmp_path, capsys, monkeypatch):
    """The memory of the model that computed it is given back before the answers."""
    models, given_back = [], []

    def asked():
        return [each for each in gateway.requests if isinstance(each, generation_service_pb2.GenerateRequest)]

    def load(*args):
        reference = load_reference(*args)
        models.append(weakref.ref(next(reference._model.parameters())))
        return reference

    load_reference = command._load_reference
    monkeypatch.setattr(command, "_load_reference", load)
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: given_back.append(models[0]() is None and not asked()))
    data = write_lines(tmp_path / "d.jsonl", [{"prompt": "a", "completion": "red"}])
    argv = ["eval", "--gateway", gateway.address, "--data", str(data), "--metric", "exact", "--nll"]
    argv += ["--model", str(base), "--model-name", "base", "--model-dtype", "float32"]
    assert cli.main(argv) == 0, capsys.readouterr().err
    assert "loss" in capsys.readouterr().out and given_back == [True] and asked()
