"""`icarus chat` in a terminal and in a pipe, against a scripted gateway."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from cli.terminal import Terminal
from client.proxy import Proxy
from waiting import wait_until

from icarus.cli.chat import cached_share
from icarus.errors import OverloadedError
from icarus.types import Usage
from icarus.v1 import session_service_pb2 as session_pb2


def chat(gateway, lines: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "icarus.cli.main", "chat", "--gateway", gateway.address, *arguments]
    return subprocess.run(command, input=lines, capture_output=True, text=True, timeout=120, check=False)


def turns(gateway):
    return [request for request in gateway.requests if isinstance(request, session_pb2.GenerateTurnRequest)]


def test_in_a_pipe_answers_alone_are_on_standard_output(gateway):
    done = chat(gateway, "hello\n\n//slash\n/quit\nnever sent\n", "--system", "be brief", "--max-tokens", "9")
    assert (done.returncode, done.stdout) == (0, "<7>\n<7>\n")
    assert done.stderr.count("prompt 1 tokens: ") == 2
    first, second = turns(gateway)
    assert [turn.content.messages.messages[0].content for turn in (first, second)] == ["hello", "/slash"]
    assert (first.model, first.sampling.max_tokens, first.session_id) == ("base", 9, second.session_id)
    created = gateway.last(session_pb2.CreateSessionRequest).content.messages.messages[0]
    assert (created.role, created.content) == ("system", "be brief")


def test_plain_lines_are_sent_without_a_template(gateway):
    assert chat(gateway, "as it is\n", "--plain").returncode == 0
    assert turns(gateway)[0].content.text == "as it is"


def test_in_a_pipe_the_first_failure_ends_it(gateway):
    gateway.load("alpha")
    done = chat(gateway, "/as nobody\nnever sent\n")
    assert done.returncode == 2 and "no model 'nobody'; there are base, alpha" in done.stderr
    assert chat(gateway, "/nonsense\n").returncode == 2
    assert turns(gateway) == []


def test_after_a_turn_that_was_lost_it_says_where_to_look(gateway):
    with Proxy(gateway.address) as proxy, ThreadPoolExecutor() as threads:
        running = threads.submit(chat, proxy, "endless\n", "--plain")
        wait_until(lambda: gateway.turn_ids)
        gateway.failures.append(OverloadedError("full"))
        proxy.cut()
        done = running.result()
    assert done.returncode == 1 and "the turn was given up; look at the session" in done.stderr
    assert "turn_id" not in done.stderr


def test_a_conversation_in_a_terminal(gateway):
    gateway.load("alpha")
    with Terminal("chat", "--gateway", gateway.address, "--plain") as terminal:
        terminal.wait_for("/help lists the commands")
        terminal.wait_for("base> ")
        terminal.type("hello\n")
        terminal.wait_for("<7>\nprompt 1 tokens: ")
        terminal.wait_for("base> ")
        terminal.type("/as alpha\n")
        terminal.wait_for("alpha answers from here on")
        terminal.wait_for("alpha> ")
        terminal.type("/models\n")
        terminal.wait_for("context length 2048")
        terminal.type("/help\n")
        terminal.wait_for("/fork")
        gateway.failures.append(OverloadedError("32 turns wait"))
        terminal.type("hello\n")
        terminal.wait_for("error: .*32 turns wait")
        terminal.type("/nonsense\n")
        terminal.wait_for("unknown command /nonsense")
        terminal.type("hello\n")
        terminal.wait_for("<7>\nprompt 1 tokens: ")
        terminal.type("/quit\n")
        assert terminal.wait() == 0
    assert [turn.model for turn in turns(gateway)] == ["base", "alpha", "alpha"]


def test_ctrl_c_stops_the_answer_and_not_the_program(gateway):
    with Terminal("chat", "--gateway", gateway.address, "--plain") as terminal:
        terminal.wait_for("base> ")
        terminal.type("endless\n")
        terminal.wait_for("<7>")
        terminal.type("\x03")
        terminal.wait_for("stopped; this turn is no part of the conversation")
        terminal.wait_for("base> ")
        terminal.type("half a line")
        terminal.wait_for("half a line")
        time.sleep(0.5)  # CPython notices a signal that comes while readline still handles a key only at the next key
        terminal.type("\x03")
        terminal.wait_for("base> ")
        terminal.type("hello\n")
        terminal.wait_for("<7>\nprompt 1 tokens: ")
        terminal.wait_for("base> ")
        terminal.type("\x04")
        assert terminal.wait() == 0
    stopped, answered = turns(gateway)
    assert answered.content.text == "hello"
    wait_until(lambda: gateway.cancelled == [stopped.turn_id])


def test_no_gateway_says_how_to_start_one():
    command = [sys.executable, "-m", "icarus.cli.main", "chat", "--gateway", "127.0.0.1:1"]
    done = subprocess.run(command, input="hi\n", capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1 and "icarus up" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("usage", "text"),
    [
        (Usage(prompt_tokens=12, computed_tokens=12), "prompt 12 tokens: 0 % from cache"),
        (Usage(prompt_tokens=1204, local_tokens=1100, remote_tokens=60), "prompt 1,204 tokens: 96 % from cache"),
        (
            Usage(prompt_tokens=1204, local_tokens=1100, remote_tokens=60, cross_adapter_tokens=860),
            "prompt 1,204 tokens: 96 % from cache (71 % written by other specialists)",
        ),
        (Usage(), "prompt 0 tokens: 0 % from cache"),
    ],
)
def test_the_cached_share(usage, text):
    assert cached_share(usage) == text
