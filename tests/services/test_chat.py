"""`icarus chat` in a terminal, and a broken way to the gateway, both with the real system."""

import re

from cli.terminal import Terminal
from client.proxy import Proxy
from services.test_cancellation import decoding_held
from services.test_chain import ids
from services.test_faults import wait_until_busy

from icarus.client import Client, Delta, RetryPolicy


def test_a_conversation_passes_from_specialist_to_specialist(system, client):
    with Terminal("chat", "--gateway", system.address, "--max-tokens", "24", "--ignore-eos") as terminal:
        terminal.wait_for("session [0-9a-f]+")
        terminal.wait_for("tiny> ")
        terminal.type("/as s0\n")
        terminal.wait_for("s0> ")
        terminal.type("Tell me about the greenhouse and its eleven vents.\n")
        terminal.wait_for(r"prompt \d+ tokens: \d+ % from cache; cut off")
        terminal.wait_for("s0> ")
        terminal.type("/as s1\n")
        terminal.wait_for("s1> ")
        terminal.type("Go on.\n")
        terminal.wait_for(r"from cache \(\d+ % written by other specialists\)")
        terminal.wait_for("s1> ")
        terminal.type("/fork\n")
        terminal.wait_for("a copy of")
        terminal.type("And now?\n")
        terminal.wait_for(r"written by other specialists")
        terminal.wait_for("s1> ")
        terminal.type("/quit\n")
        assert terminal.wait() == 0
    session_id, copy_id = re.findall(r"session ([0-9a-f]+)", terminal.screen)[:2]
    with Client(system.address) as client:
        original, copy = client.session(session_id).get(), client.session(copy_id).get()
        assert (original.num_turns, copy.num_turns) == (2, 3)
        assert copy.token_ids[: len(original.token_ids)] == original.token_ids


def test_ctrl_c_frees_the_turn_and_the_conversation_goes_on(system, client):
    arguments = ("--gateway", system.address, "--plain", "--max-tokens", "900", "--ignore-eos")
    with Terminal("chat", *arguments) as terminal:
        terminal.wait_for("tiny> ")
        with decoding_held(system):
            terminal.type("count\n")
            wait_until_busy(system)
            terminal.type("\x03")
            terminal.wait_for("stopped")
            system.wait_until_idle()
        terminal.wait_for("tiny> ")
        terminal.type("\x04")
        assert terminal.wait() == 0


def test_a_turn_survives_the_proxy_in_front_of_the_gateway(system, client):
    policy = RetryPolicy(retries=8, first_delay_seconds=0.1)
    with Proxy(system.address) as proxy, Client(proxy.address, retry=policy, timeout=120) as far:
        prompt = ids(40, 77)
        with decoding_held(system):  # so that at least one cut is in the middle of the turn
            stream = far.generate("s0", token_ids=prompt, max_tokens=400, ignore_eos=True)
            text = next(stream).text
            proxy.cut()
        for _ in range(2):
            text += next(stream, Delta((), "")).text
            proxy.cut()
        text += "".join(delta.text for delta in stream)
        result = stream.result()
    assert proxy.connections >= 2
    assert len(result.token_ids) == 400 and result.text == text
    system.check_greedy("s0", prompt, result)


def test_what_is_cancelled_is_freed_at_once_though_it_was_resumable(system, client):
    with decoding_held(system):
        stream = client.generate("s0", token_ids=ids(40, 78), max_tokens=900, ignore_eos=True)
        next(stream)
        stream.cancel()
        system.wait_until_idle()
