"""`icarus generate` and `icarus models` against a scripted gateway."""

import io
import signal
import subprocess
import sys
from typing import Any

import pytest
from waiting import wait_until

from icarus.cli.generate import _logprob_line
from icarus.cli.main import main
from icarus.client.messages import Sampling
from icarus.types import TokenLogprob, TokenLogprobs
from icarus.v1 import generation_pb2 as generation_types_pb2
from icarus.v1 import generation_service_pb2 as generation_pb2
from icarus.v1 import session_service_pb2 as session_pb2


def test_generate_streams_text_and_sums_up(gateway, capsys):
    argv = ["generate", "--gateway", gateway.address, "--model", "alpha", "--max-tokens", "3", "--seed", "5", "hi"]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert out == "<1><2><3>\n"
    assert "length: 3 prompt tokens (1 computed, 0 local, 2 remote)" in err and "by decode-0, seed 5" in err
    request = gateway.last(generation_pb2.GenerateRequest)
    assert (request.model, request.content.text, request.sampling.max_tokens) == ("alpha", "hi", 3)
    assert not request.sampling.HasField("temperature") and not request.sampling.ignore_eos


def test_ctrl_c_ends_the_turn(gateway):
    command = [sys.executable, "-m", "icarus.cli.main", "generate", "--gateway", gateway.address, "endless"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.read(3) == "<1>"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "cancelled\n")
    turn_id = gateway.last(generation_pb2.GenerateRequest).turn_id
    wait_until(lambda: gateway.cancelled == [turn_id])


def test_generate_takes_the_base_model_and_standard_input(gateway, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("from a pipe"))
    assert main(["generate", "--gateway", gateway.address, "--tenant", "acme", "--stop", "a", "--stop", "b"]) == 0
    request = gateway.last(generation_pb2.GenerateRequest)
    assert (request.model, request.content.text, request.tenant) == ("base", "from a pipe", "acme")
    assert list(request.sampling.stop) == ["a", "b"]


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["--model", "alpha", "\udcff"], "text"),
        (["--model", "alpha", "--chat", "\udcff"], "content"),
        (["--model", "\udcff", "hi"], "model"),
        (["--model", "alpha", "--tenant", "\udcff", "hi"], "tenant"),
        (["--model", "alpha", "--session", "\udcff", "hi"], "session_id"),
        (["--model", "alpha", "--stop", "\udcff", "hi"], "stop"),
    ],
)
def test_an_argument_that_is_not_utf8_is_refused(gateway, capsys, argv, word):
    """Python makes "\\udcff" of a byte 0xff on a command line."""
    assert main(["generate", "--gateway", gateway.address, *argv]) == 2
    err = capsys.readouterr().err
    assert err.startswith("icarus: error: ") and err.count("\n") == 1 and word in err and r"\udcff" in err


def test_standard_input_that_is_not_utf8_is_refused(gateway, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    assert main(["generate", "--gateway", gateway.address, "--model", "alpha"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("icarus: error: standard input has byte 0xe9 at offset 3") and err.count("\n") == 1


def test_generate_as_chat_in_a_session(gateway, capsys):
    argv = ["generate", "--gateway", gateway.address, "--model", "alpha", "--chat", "hi", "--session"]
    assert main([*argv, "new"]) == 0
    session_id = capsys.readouterr().err.split("\n")[0].removeprefix("session ")
    assert main([*argv, session_id]) == 0
    request = gateway.last(session_pb2.GenerateTurnRequest)
    assert (request.session_id, request.content.messages.messages[0].content) == (session_id, "hi")


def test_every_sampling_option_is_a_flag(gateway):
    given: dict[str, Any] = {
        "max_tokens": 9, "temperature": 0.5, "top_p": 0.25, "top_k": 3, "seed": 4, "stop": ["a"], "ignore_eos": True,
        "min_tokens": 2, "min_p": 0.125, "frequency_penalty": -0.5, "presence_penalty": 1.5, "repetition_penalty": 1.25,
        "stop_token_ids": [7, 8], "logprobs": 0,
    }  # fmt: skip
    assert set(given) == set(Sampling.__annotations__)
    argv = ["generate", "--gateway", gateway.address, "--model", "alpha"]
    for name, value in given.items():
        values = [] if value is True else value if isinstance(value, list) else [value]
        argv += [f"--{name.replace('_', '-')}", *map(str, values)]
    assert main([*argv, "--chat", "hi"]) == 0
    sampling = gateway.last(generation_pb2.GenerateRequest).sampling
    assert sampling == generation_types_pb2.SamplingParams(**given)


def test_logprobs_are_shown_beside_the_answer():
    entry = TokenLogprobs(TokenLogprob(5, -1.25), (TokenLogprob(9, -0.5), TokenLogprob(5, -1.25)))
    assert _logprob_line(entry) == "token 5 -1.2500 of 9 -0.5000, 5 -1.2500\n"


@pytest.mark.parametrize(
    ("argv", "code", "word"),
    [
        (["--model", "missing", "hi"], 2, "missing"),
        (["--model", "alpha", "--session", "nope", "hi"], 2, "nope"),
        (["--model", "alpha", "invalid"], 2, "max_tokens"),
        (["--model", "alpha", "overloaded"], 1, "try again"),
    ],
)
def test_what_the_gateway_refuses(gateway, capsys, argv, code, word):
    assert main(["generate", "--gateway", gateway.address, *argv]) == code
    err = capsys.readouterr().err
    assert err.startswith("icarus: error: ") and err.count("\n") == 1 and word in err


def test_no_gateway_says_how_to_start_one(capsys):
    assert main(["models", "--gateway", "127.0.0.1:1"]) == 1
    err = capsys.readouterr().err
    assert "127.0.0.1:1" in err and "icarus up" in err and err.count("\n") == 1


def test_models_lists_them(gateway, capsys):
    assert main(["models", "--gateway", gateway.address]) == 0
    out = capsys.readouterr().out
    assert "base" in out and "decode-0" in out and "2048" in out


def test_a_reader_that_goes_away_is_no_traceback(gateway):
    command = [sys.executable, "-m", "icarus.cli.main", "generate", "--gateway", gateway.address, "--model", "a", "hi"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    err = process.stderr.read().decode()
    assert process.wait(30) == 1 and err == ""
    process.stderr.close()
