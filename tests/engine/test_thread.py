"""The engine thread: commands between steps, and none of them for ever."""

import threading

import pytest
import torch
from engine.harness import Harness
from tiny import tiny_llama
from waiting import wait_until

from icarus.engine.engine import Engine
from icarus.engine.thread import EngineThread


@pytest.fixture
def thread(tmp_path):
    torch.set_num_threads(1)
    harness = Harness(tiny_llama(tmp_path / "tiny"))
    thread = EngineThread(harness.engine, lambda sequence, changes: None)
    thread.harness = harness
    thread.start()
    yield thread
    assert thread.stop(60)


def test_callers_who_ask_without_end_do_not_keep_a_turn_from_its_tokens(thread):
    stop = threading.Event()

    def ask_again(engine: Engine) -> None:
        if not stop.is_set():
            thread.post(ask_again)

    turn = thread.post(lambda engine: thread.harness.submit([5, 6, 7])).result(20)
    thread.post(ask_again)
    try:
        wait_until(lambda: turn.ended)
    finally:
        stop.set()
