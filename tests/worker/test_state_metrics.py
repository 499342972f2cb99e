"""A worker's state at a scrape."""

import asyncio

import pytest
import torch
from tiny import tiny_llama
from waiting import eventually

from icarus.config import Config, ModelSection
from icarus.engine.thread import EngineFailedError
from icarus.rpc.metrics_server import make_registry
from icarus.types import Role, WorkerId
from icarus.worker.build import build_worker
from icarus.worker.change_feed import ChangeFeed
from icarus.worker.metrics import WorkerMetrics
from icarus.worker.state_metrics import WorkerState
from icarus.worker.worker import Worker


@pytest.fixture
async def worker(tmp_path) -> Worker:
    torch.set_num_threads(1)
    config = Config(model=ModelSection(path=str(tiny_llama(tmp_path / "tiny")), dtype="float32"))
    return await build_worker(config, Role.DECODE, WorkerId("w"), ChangeFeed(), WorkerMetrics.register(make_registry()))


async def num_used(state: WorkerState) -> float:
    families = {family.name: family for family in await state.read()}
    return next(s.value for s in families["icarus_kv_blocks"].samples if s.labels["state"] == "used")


async def test_scrapes_that_wait_for_one_step_get_its_answer_and_the_next_one_asks_anew(worker, monkeypatch):
    state = WorkerState(worker)
    monkeypatch.setattr("icarus.worker.state_metrics._ENGINE_SECONDS", 60)
    scrapes = [asyncio.create_task(num_used(state)) for _ in range(3)]
    await eventually(lambda: state._asked is not None)
    worker.engine.start()
    assert await asyncio.gather(*scrapes) == [0, 0, 0]
    await asyncio.wrap_future(worker.engine.post(lambda engine: engine.pool.allocate(3)))
    assert await num_used(state) == 3
    worker.engine.stop()


async def test_an_engine_that_has_failed_leaves_the_other_metrics(worker):
    """For as long as its worker drains."""
    state = WorkerState(worker)
    worker.engine.start()
    before = {family.name for family in await state.read()}
    await asyncio.wrap_future(worker.engine.post(lambda engine: vars(engine).update(expire_leases=lambda: 1 / 0)))
    with pytest.raises(EngineFailedError):
        await asyncio.wrap_future(worker.engine.ended)
    assert {family.name for family in await state.read()} == before


async def test_an_answer_that_came_too_late_for_its_scrape_is_not_the_next_ones(worker, monkeypatch):
    monkeypatch.setattr("icarus.worker.state_metrics._ENGINE_SECONDS", 0.1)
    state = WorkerState(worker)
    assert "icarus_kv_blocks" not in {family.name for family in await state.read()}
    monkeypatch.setattr("icarus.worker.state_metrics._ENGINE_SECONDS", 60)
    worker.engine.start()
    await asyncio.wrap_future(worker.engine.post(lambda engine: engine.pool.allocate(3)))
    late = state._asked
    assert late is not None
    await asyncio.wait((late,))
    assert await num_used(state) == 3
    worker.engine.stop()
