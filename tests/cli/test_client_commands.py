"""`icarus generate`, `icarus models` and `icarus adapters` against a scripted gateway."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest
from cli.terminal import Terminal
from client.proxy import Proxy
from waiting import wait_until

from icarus.cli.generate import _logprob_line
from icarus.cli.main import main
from icarus.client.messages import Sampling
from icarus.errors import OverloadedError, UnavailableError
from icarus.types import TokenLogprob, TokenLogprobs
from icarus.v1 import generation_pb2 as generation_types_pb2
from icarus.v1 import generation_service_pb2 as generation_pb2
from icarus.v1 import model_service_pb2 as model_pb2
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


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        (["endless"], "the turn was given up; ask again"),
        (["endless", "--session", "new"], "the turn was given up; look at the session"),
        (["committing"], "the turn had finished all the same; ask again for its answer"),
        (["committing", "--session", "new"], "the turn had finished all the same, and is part of the session"),
    ],
)
def test_a_turn_that_was_lost_is_given_up(gateway, capsys, prompt, told):
    def lose(proxy: Proxy) -> None:
        wait_until(lambda: gateway.turn_ids)
        gateway.failures.append(OverloadedError("full"))
        proxy.cut()

    with Proxy(gateway.address) as proxy:
        thread = threading.Thread(target=lose, args=(proxy,))
        thread.start()
        assert main(["generate", "--gateway", proxy.address, "--model", "alpha", *prompt]) == 1
        thread.join()
    err = capsys.readouterr().err
    assert told in err and "turn_id" not in err


@pytest.mark.parametrize("prompt", ["endless", "overloaded"])
def test_an_error_begins_a_line(gateway, capsys, prompt):
    argv = ["generate", "--gateway", gateway.address, "--model", "alpha", "--timeout", "1", prompt]
    assert main(argv) == 1
    out = capsys.readouterr().out
    assert out[:3] + out[-1:] == ("<1>\n" if prompt == "endless" else "")


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
        flag = f"--{name.replace('_', '-')}"
        for item in value if isinstance(value, list) else [value]:
            argv += [flag] if item is True else [flag, str(item)]
    assert main([*argv, "hi"]) == 0
    assert gateway.last(generation_pb2.GenerateRequest).content.text == "hi"
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


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nobody.invalid:7080"])
def test_no_gateway_says_how_to_start_one(capsys, address):
    assert main(["models", "--gateway", address]) == 1
    err = capsys.readouterr().err
    assert address in err and "icarus up" in err and err.count("\n") == 1


def test_only_a_gateway_that_is_not_there_is_asked_after(gateway, capsys):
    gateway.failures += [UnavailableError("no decode worker is registered and alive")] * 9
    assert main(["models", "--gateway", gateway.address, "--timeout", "1"]) == 1
    err = capsys.readouterr().err
    assert "no decode worker" in err and "icarus up" not in err


def test_models_in_a_pipe_are_rows_of_tabs(gateway, capsys):
    gateway.load("x[/b] " + "long " * 40)
    assert main(["models", "--gateway", gateway.address]) == 0
    header, base, other = capsys.readouterr().out.splitlines()
    assert header.split("\t")[0] == "model"
    assert base.split("\t") == ["base", "base", "decode-0", "decode-0", ""]
    assert other.split("\t")[0] == "x[/b] " + "long " * 40


def test_models_in_a_terminal_are_a_table_with_names_as_they_are(gateway):
    gateway.load("support[v2]")
    gateway.load("x[/b]")
    with Terminal("models", "--gateway", gateway.address) as terminal:
        assert terminal.wait() == 0
    assert "support[v2]" in terminal.screen and "x[/b]" in terminal.screen and "length 2048" in terminal.screen


def test_models_as_json(gateway, capsys):
    assert main(["models", "--gateway", gateway.address, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["models"][0]["name"], told["context_length"]) == ("base", 2048)


def test_adapters_are_loaded_pinned_and_unloaded(gateway, capsys):
    here = ["--gateway", gateway.address]
    argv = ["adapters", "load", "alpha", "/a/alpha", "--mode", "private", "--replace", "--pin", *here]
    assert main([*argv, "--worker", "decode-0", "--worker", "prefill-0"]) == 0
    assert capsys.readouterr().out == "alpha is loaded on decode-0, prefill-0 (private, d1, pinned)\n"
    asked = {"name": "alpha", "path": "/a/alpha", "replace": True, "pin": True, "worker_ids": ["decode-0", "prefill-0"]}
    expected = model_pb2.LoadAdapterRequest(mode=model_pb2.ADAPTER_MODE_PRIVATE, **asked)
    assert gateway.last(model_pb2.LoadAdapterRequest) == expected
    for action, told in (("unpin", "no longer pinned"), ("pin", "pinned: its weights stay in memory")):
        assert main(["adapters", action, "alpha", *here]) == 0
        assert capsys.readouterr().out == f"alpha is {told}\n" and gateway.models["alpha"].pinned == (action == "pin")
    assert main(["adapters", "unload", "alpha", *here]) == 0
    assert capsys.readouterr().out == "alpha is unloaded\n" and list(gateway.models) == ["base"]


def test_an_adapter_is_loaded_as_its_metadata_says_and_told_as_json(gateway, capsys):
    assert main(["adapters", "load", "beta", "/a/beta", "--json", "--gateway", gateway.address]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["name"], told["digest"], told["pinned"]) == ("beta", "d1", False)
    assert gateway.last(model_pb2.LoadAdapterRequest) == model_pb2.LoadAdapterRequest(name="beta", path="/a/beta")


@pytest.mark.parametrize("action", ["unload", "pin", "unpin"])
def test_an_adapter_that_is_not_there_is_named(gateway, capsys, action):
    assert main(["adapters", action, "none-such", "--gateway", gateway.address]) == 2
    err = capsys.readouterr().err
    assert "'none-such'" in err and err.count("\n") == 1


def test_generate_as_json(gateway, capsys):
    argv = ["generate", "--gateway", gateway.address, "--model", "alpha", "--json", "hi"]
    assert main(argv) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["text"], told["token_ids"], told["usage"]["prompt_tokens"]) == ("<1><2><3>", [1, 2, 3], 3)


def test_a_prompt_is_asked_for_in_a_terminal(gateway):
    with Terminal("generate", "--gateway", gateway.address, "--model", "alpha") as terminal:
        terminal.wait_for("reading the prompt from standard input")
        terminal.type("hello\n\x04")
        assert terminal.wait() == 0
    assert gateway.last(generation_pb2.GenerateRequest).content.text == "hello\n"


def test_headers_go_with_every_call(gateway, capsys):
    argv = ["models", "--gateway", gateway.address, "--header", "X-Team=a=b", "--header"]
    assert main([*argv, "authorization=Bearer s"]) == 0
    ((_, metadata),) = gateway.calls
    assert (metadata["x-team"], metadata["authorization"]) == ("a=b", "Bearer s")
    assert main([*argv, "nonsense"]) == 2
    assert "--header is 'nonsense'; it is NAME=VALUE" in capsys.readouterr().err


def test_an_evaluation_at_a_gateway_is_asked_as_any_other_client(gateway, tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a", "completion": "x"}\n')
    argv = ["eval", "--data", str(data), "--metric", "exact", "--tenant", "acme", "--header", "X-Team=a"]
    assert main([*argv, "--gateway", gateway.address]) == 0
    assert {metadata.get("x-team") for _, metadata in gateway.calls} == {"a"}
    assert gateway.last(generation_pb2.GenerateRequest).tenant == "acme"
    assert main([*argv, "--gateway", gateway.address, "--timeout", "2", "--tls"]) == 1
    capsys.readouterr()
    assert main(argv) == 2
    assert "give --gateway" in capsys.readouterr().err


def test_tls_speaks_tls(gateway, capsys):
    assert main(["models", "--gateway", gateway.address, "--timeout", "2", "--tls"]) == 1
    assert gateway.calls == []
    assert "it does not speak TLS: leave out --tls" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["models", "--gateway"], ["doctor", "--gateway"], ["health"]])
def test_what_is_no_address_is_refused(argv, capsys):
    assert main([*argv, "localhost"]) == 2
    assert "address is 'localhost'; it is HOST:PORT" in capsys.readouterr().err


@pytest.mark.parametrize("redirection", [">/dev/full", ">&-", "2>&-"])
def test_output_that_takes_nothing_is_no_traceback(gateway, redirection):
    command = f"{sys.executable} -m icarus.cli.main generate --gateway {gateway.address} --model a hi {redirection}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    assert done.returncode == (1 if "full" in redirection else 0)
    assert ("No space left" in done.stderr) == ("full" in redirection)


def test_output_in_a_poor_encoding_is_escaped(gateway):
    gateway.load("caf\xe9")
    command = [sys.executable, "-m", "icarus.cli.main", "models", "--gateway", gateway.address]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and "caf\\xe9" in done.stdout


def test_a_reader_that_goes_away_is_no_traceback(gateway):
    command = [sys.executable, "-m", "icarus.cli.main", "generate", "--gateway", gateway.address, "--model", "a", "hi"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    err = process.stderr.read().decode()
    assert process.wait(30) == 1 and err == ""
    process.stderr.close()


def test_a_mode_that_is_none_is_told_which_there_are(capsys):
    assert main(["adapters", "load", "a", "b", "--mode", "x"]) == 2
    err = capsys.readouterr().err
    assert "'x'" in err and "shared" in err and "private" in err and "AdapterMode" not in err
