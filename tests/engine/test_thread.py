"""The engine thread: commands between steps, and none of them for ever."""

import itertools
import threading
import time

import pytest
import torch
from engine.harness import Harness, Turn
from tiny import tiny_llama
from waiting import wait_until

from icarus.engine.engine import Engine
from icarus.engine.thread import EngineThread
from icarus.errors import OverloadedError


@pytest.fixture
def thread(tmp_path):
    torch.set_num_threads(1)
    harness = Harness(tiny_llama(tmp_path / "tiny"))
    thread = EngineThread(harness.engine, lambda sequence, changes: None)
    thread.harness = harness
    thread.start()
    yield thread
    assert thread.stop(60)


def test_a_lease_ends_on_an_engine_that_has_nothing_to_compute(thread):
    turn = thread.post(lambda engine: thread.harness.submit(range(5, 13), prefill_only=True)).result(20)
    wait_until(lambda: turn.ended)
    thread.harness.clock.now = 10.5
    wait_until(lambda: thread.post(Engine.state).result(20).leases_expired)


def test_commands_that_begin_work_are_refused_where_many_wait_and_those_that_end_it_are_not(thread):
    in_command, go_on = threading.Event(), threading.Event()
    held = thread.post(lambda engine: (in_command.set(), go_on.wait(60)))
    assert in_command.wait(20)
    thread._max_queued_commands = 2
    answers = [thread.call(lambda engine: 1), thread.call(lambda engine: 2)]
    with pytest.raises(OverloadedError, match="2 commands wait"):
        thread.call(lambda engine: 3)
    answers.append(thread.post(lambda engine: 4))
    go_on.set()
    assert held.result(20) and [answer.result(20) for answer in answers] == [1, 2, 4]


def test_an_engine_whose_turns_wait_for_blocks_sleeps_between_commands(thread, monkeypatch):
    harness, rounds = thread.harness, itertools.count()
    schedule = harness.scheduler.schedule
    monkeypatch.setattr(harness.scheduler, "schedule", lambda: (next(rounds), schedule())[1])

    def begin(engine: Engine) -> tuple[Turn, Turn]:
        return harness.submit([5, 6, 7], max_tokens=8), harness.submit(range(248), max_tokens=1, await_landing=True)

    turn, landing = thread.post(begin).result(20)
    wait_until(lambda: len(turn.output) == 6)
    before, started = next(rounds), time.monotonic()
    time.sleep(0.3)
    assert next(rounds) - before <= 3 + 10 * (time.monotonic() - started) and not turn.ended
    thread.post(lambda engine: engine.abort(landing.request.request_id)).result(20)
    wait_until(lambda: turn.ended)
    assert len(turn.output) == 8 and harness.scheduler.preemptions == 0


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
