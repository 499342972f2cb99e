"""When a worker ends by itself: a bug in the engine thread, a pool full of hanging reads."""

import asyncio
import functools
from contextlib import asynccontextmanager

import pytest
import torch
from engine.harness import Harness
from tiny import tiny_llama
from waiting import eventually

from icarus.engine.engine import Engine
from icarus.engine.request import Failed
from icarus.engine.thread import EngineFailedError, EngineThread
from icarus.errors import UnavailableError
from icarus.worker.watch import QuarantineFullError, watch


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    return tiny_llama(tmp_path_factory.mktemp("watch") / "tiny")


def fail(error, *args):
    raise error


@asynccontextmanager
async def running(folder):
    harness = Harness(folder)
    thread = EngineThread(harness.engine, lambda sequence, changes: None)
    thread.start()
    yield harness, thread
    thread.stop()


async def test_a_bug_in_the_engine_ends_the_worker_and_every_turn(folder, caplog):
    async with running(folder) as (harness, thread):
        watching = asyncio.create_task(watch(thread, max_quarantined_blocks=0))
        held = thread.post(lambda engine: harness.scheduler.__dict__.update(schedule=lambda: 1 / 0))
        turn = thread.post(lambda engine: harness.submit([5, 6, 7]))
        with pytest.raises(EngineFailedError, match="ZeroDivisionError"):
            await asyncio.wait_for(watching, 10)
        assert held.result() is None
        assert isinstance(turn.result().ended, Failed) and isinstance(turn.result().ended.error, UnavailableError)
        with pytest.raises(UnavailableError, match="has failed"):
            thread.post(Engine.state).result(10)
        assert "Traceback" in caplog.text and "in _round" in caplog.text


async def test_a_lost_device_ends_the_worker_and_a_failed_step_does_not(folder, monkeypatch):
    async with running(folder) as (harness, thread):
        for error, ends in ((torch.OutOfMemoryError("no room"), False), (torch.AcceleratorError("lost"), True)):
            monkeypatch.setattr(harness.model, "forward", functools.partial(fail, error))
            turn = thread.post(lambda engine: harness.submit([5, 6, 7])).result(10)
            await eventually(lambda turn=turn: turn.ended)
            assert isinstance(turn.ended, Failed) and isinstance(turn.ended.error, UnavailableError) is ends
        with pytest.raises(EngineFailedError, match="cpu failed: lost"):
            await asyncio.wait_for(watch(thread, max_quarantined_blocks=0), 10)


async def test_too_many_quarantined_blocks_end_the_worker(folder):
    async with running(folder) as (_, thread):
        watching = asyncio.create_task(watch(thread, max_quarantined_blocks=1))
        blocks = await asyncio.wrap_future(thread.post(lambda engine: quarantine(engine, 1)))
        done, _ = await asyncio.wait({watching}, timeout=1.5)
        assert not done, "one block is allowed"
        await asyncio.wrap_future(thread.post(lambda engine: quarantine(engine, 1)))
        with pytest.raises(QuarantineFullError, match=r"2 of 64 blocks .* max_quarantined_fraction"):
            await asyncio.wait_for(watching, 10)
        await asyncio.wrap_future(thread.post(lambda engine: engine.settle(blocks)))


async def test_an_engine_that_is_stopped_is_no_trouble(folder):
    async with running(folder) as (_, thread):
        watching = asyncio.create_task(watch(thread, max_quarantined_blocks=0))
        thread.post(lambda engine: None).result(10)
        thread.stop()
        await asyncio.wait_for(watching, 10)


def quarantine(engine, count):
    blocks = engine.pool.allocate(count)
    engine.pool.quarantine(blocks)
    return blocks
