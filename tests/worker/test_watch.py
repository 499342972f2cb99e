"""When a worker ends by itself: a thread that fails or hangs, reads that hang or can never settle."""

import asyncio
import functools
import threading
from concurrent.futures import Future
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import torch
from engine.harness import Harness
from tiny import tiny_llama
from waiting import eventually

from icarus.engine.engine import Engine
from icarus.engine.events import Failed
from icarus.engine.thread import EngineFailedError, EngineThread
from icarus.errors import OverloadedError, UnavailableError
from icarus.transfer.thread import TransferThreadFailedError
from icarus.worker.watch import QuarantineFullError, StuckReadError, ThreadHungError, watch


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
    try:
        yield harness, thread
    finally:
        assert thread.stop()


def fake_transfer(age_seconds=0.0, num_stuck=0, max_wait_seconds=0.0):
    return SimpleNamespace(
        ended=Future(), age_seconds=age_seconds, num_stuck=num_stuck, max_wait_seconds=max_wait_seconds
    )


def watching(thread, transfer=None, max_quarantined_blocks=64, max_step_seconds=60.0):
    return asyncio.create_task(watch(thread, transfer or fake_transfer(), max_quarantined_blocks, max_step_seconds))


async def test_a_bug_in_the_engine_ends_the_worker_and_every_turn(folder, caplog):
    async with running(folder) as (harness, thread):
        watched = watching(thread)
        held = thread.post(lambda engine: harness.scheduler.__dict__.update(schedule=lambda: 1 / 0))
        turn = thread.post(lambda engine: harness.submit([5, 6, 7]))
        with pytest.raises(EngineFailedError, match="ZeroDivisionError"):
            await asyncio.wait_for(watched, 10)
        assert held.result() is None
        assert isinstance(turn.result().ended, Failed) and isinstance(turn.result().ended.error, UnavailableError)
        with pytest.raises(UnavailableError, match="has failed"):
            thread.post(Engine.state).result(10)
        assert "Traceback" in caplog.text and "in _round" in caplog.text


async def test_a_lost_device_ends_the_worker_and_a_failed_step_does_not(folder, monkeypatch):
    async with running(folder) as (harness, thread):
        cublas = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        in_cuda = torch.AcceleratorError("CUDA error: out of memory")
        in_cuda.error_code = 2
        no_room = torch.OutOfMemoryError("no room"), cublas, in_cuda
        for error, ends in (*((each, False) for each in no_room), (torch.AcceleratorError("lost"), True)):
            monkeypatch.setattr(harness.model, "forward", functools.partial(fail, error))
            turn = thread.post(lambda engine: harness.submit([5, 6, 7])).result(10)
            await eventually(lambda turn=turn: turn.ended)
            assert isinstance(turn.ended, Failed)
            assert isinstance(turn.ended.error, UnavailableError if ends else OverloadedError)
        with pytest.raises(EngineFailedError, match="cpu failed: lost"):
            await asyncio.wait_for(watching(thread), 10)


async def test_a_kernel_that_cannot_be_loaded_ends_the_worker(folder, monkeypatch):
    """Triton does not try again, so every later step that needs it would fail."""
    async with running(folder) as (harness, thread):
        error = RuntimeError("Triton Error [CUDA]: out of memory")
        monkeypatch.setattr(harness.model, "forward", functools.partial(fail, error))
        turn = thread.post(lambda engine: harness.submit([5, 6, 7])).result(10)
        with pytest.raises(EngineFailedError, match="cpu failed: Triton Error"):
            await asyncio.wait_for(watching(thread), 10)
        assert isinstance(turn.ended, Failed) and isinstance(turn.ended.error, UnavailableError)


async def test_too_many_quarantined_blocks_end_the_worker(folder):
    async with running(folder) as (_, thread):
        watched = watching(thread, max_quarantined_blocks=1)
        blocks = await asyncio.wrap_future(thread.post(lambda engine: quarantine(engine, 1)))
        done, _ = await asyncio.wait({watched}, timeout=1.5)
        assert not done, "one block is allowed"
        await asyncio.wrap_future(thread.post(lambda engine: quarantine(engine, 1)))
        with pytest.raises(QuarantineFullError, match=r"2 of 64 blocks .* max_quarantined_fraction"):
            await asyncio.wait_for(watched, 10)
        await asyncio.wrap_future(thread.post(lambda engine: engine.settle(blocks)))


async def test_quarantine_that_ends_with_its_reads_is_no_trouble(folder, monkeypatch):
    """Reads of cancelled turns are there too, and a gateway that dies cancels many at once."""
    monkeypatch.setattr("icarus.worker.watch._PERIOD_SECONDS", 0.02)
    async with running(folder) as (_, thread):
        watched = watching(thread, fake_transfer(max_wait_seconds=1.0), max_quarantined_blocks=1)
        for _ in range(5):
            blocks = await asyncio.wrap_future(thread.post(lambda engine: quarantine(engine, 2)))
            await asyncio.sleep(0.3)
            await asyncio.wrap_future(thread.post(lambda engine, blocks=blocks: engine.settle(blocks)))
            await asyncio.sleep(0.1)
        assert not watched.done(), "they were in quarantine for longer than a read may take, but none of them was"
        watched.cancel()


async def test_an_engine_that_is_stopped_is_no_trouble(folder):
    async with running(folder) as (_, thread):
        watched = watching(thread)
        thread.post(lambda engine: None).result(10)
        thread.stop()
        await asyncio.wait_for(watched, 10)


async def test_an_engine_that_hangs_ends_the_worker(folder):
    async with running(folder) as (_, thread):
        go_on = threading.Event()
        watched = watching(thread, max_step_seconds=1.5)
        held = thread.post(lambda engine: go_on.wait(60))
        try:
            with pytest.raises(ThreadHungError, match=r"engine thread .* 1\.5 may be .*max_step_seconds"):
                await asyncio.wait_for(watched, 30)
            assert not thread.stop(0.05), "so that the process can end without it"
        finally:
            go_on.set()
        assert held.result(10)


async def test_a_transfer_thread_that_hangs_or_ends_or_loses_a_read_ends_the_worker(folder):
    async with running(folder) as (_, thread):
        with pytest.raises(ThreadHungError, match=r"transfer thread .* 61 s; 60 may be"):
            await asyncio.wait_for(watching(thread, fake_transfer(age_seconds=61.0)), 10)
        with pytest.raises(StuckReadError, match="2 reads"):
            await asyncio.wait_for(watching(thread, fake_transfer(num_stuck=2)), 10)
        failed = fake_transfer()
        failed.ended.set_exception(TransferThreadFailedError("a bug"))
        with pytest.raises(TransferThreadFailedError, match="a bug"):
            await asyncio.wait_for(watching(thread, failed), 10)


class LateOnce:
    """A transfer thread that is late at the first look alone."""

    ended: Future[None] = Future()
    num_stuck = 0
    max_wait_seconds = 0.0
    num_looks = 0

    @property
    def age_seconds(self) -> float:
        self.num_looks += 1
        return 61.0 if self.num_looks == 1 else 0.0


async def test_a_process_that_was_stopped_for_long_is_not_taken_for_hung_when_it_wakes(folder):
    async with running(folder) as (_, thread):
        transfer = LateOnce()
        watched = watching(thread, transfer)
        await eventually(lambda: transfer.num_looks >= 3 or watched.done())
        assert not watched.done()
        watched.cancel()


def quarantine(engine, count):
    blocks = engine.pool.allocate(count)
    engine.pool.quarantine(blocks)
    return blocks
