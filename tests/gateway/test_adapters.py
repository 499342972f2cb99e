"""Adapters at run time as the gateway sees them: replacing, pinning, and the digest that a turn holds on to."""

import asyncio

import grpc
import pytest
from waiting import eventually

from icarus.errors import FailedPreconditionError, NotFoundError, OverloadedError, UnavailableError
from icarus.v1 import generation_pb2, generation_service_pb2
from icarus.v1 import model_service_pb2 as pb
from icarus.worker.v1 import registry_service_pb2

A, B, C, D = range(65, 69)


async def load(cluster, name="math", *workers, **fields):
    return await cluster.models.LoadAdapter(pb.LoadAdapterRequest(name=name, path="/x", worker_ids=workers, **fields))


async def listed(cluster) -> list[pb.Model]:
    """Adapters as ListModels shows them."""
    return [model for model in (await cluster.models.ListModels(pb.ListModelsRequest())).models if not model.is_base]


def stands_for(digest: str, mode="shared", **fields):
    return registry_service_pb2.Adapter(name="math", digest=digest, mode=mode, rank=4, **fields)


async def ask(cluster, model="math", max_tokens=4) -> tuple[list[int], str]:
    """(token ids, decode worker)."""
    request = generation_service_pb2.GenerateRequest(
        model=model,
        content=generation_pb2.Content(token_ids=generation_pb2.TokenIds(ids=[1, 2, 3])),
        sampling=generation_pb2.SamplingParams(max_tokens=max_tokens),
    )
    ids, worker = [], ""
    async for response in cluster.generation.Generate(request):
        ids += response.event.delta.token_ids
        worker = response.event.finished.route.decode_worker or worker
    return ids, worker


async def fails(awaitable, code: grpc.StatusCode, *words: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    assert caught.value.code() is code, caught.value
    for word in words:
        assert word in (caught.value.details() or "")


async def two_workers(cluster, **script):
    return [await cluster.add(name, answer=[A, B, C, D], **script) for name in ("d1", "d2")]


def change_digest(cluster, digest: str) -> None:
    for fake in cluster.fakes.values():
        fake.script.digest = digest


async def test_other_weights_need_replace(cluster):
    workers = await two_workers(cluster)
    await load(cluster)
    change_digest(cluster, "new")
    model = (await load(cluster, replace=True, pin=True)).model
    assert (model.digest, model.worker_ids, model.pinned) == ("new", ["d1", "d2"], True)
    assert [fake.script.load_requests[-1].replace for fake in workers] == [True, True]
    assert [fake.script.load_requests[-1].pin for fake in workers] == [True, True]
    await ask(cluster)
    assert workers[0].script.begun[0].adapter_digest == "new"


async def test_a_name_that_was_pinned_stays_so_when_it_is_replaced(cluster):
    await two_workers(cluster)
    await load(cluster, pin=True)
    change_digest(cluster, "new")
    model = (await load(cluster, replace=True)).model
    assert (model.digest, model.pinned) == ("new", True)


async def test_a_replaced_name_is_dropped_where_it_was_not_loaded_again(cluster):
    _, second = await two_workers(cluster)
    await load(cluster)
    change_digest(cluster, "new")
    assert (await load(cluster, "math", "d1", replace=True)).model.worker_ids == ["d1"]
    assert not second.script.loaded
    assert [(model.digest, model.worker_ids) for model in await listed(cluster)] == [("new", ["d1"])]


async def test_a_replacement_that_stops_half_way_says_who_has_it(cluster):
    first, second = await two_workers(cluster)
    third = await cluster.add("d0")
    await load(cluster, "math", "d1", "d2")
    change_digest(cluster, "new")
    second.script.load_error = FailedPreconditionError("another base")
    await fails(
        load(cluster, replace=True),
        grpc.StatusCode.FAILED_PRECONDITION,
        "worker d2: another base; d1 may have the new weights of 'math': replace it again",
    )
    assert first.script.loaded and not third.script.loaded, "who did not have it before has not got it now"
    assert [(m.digest, m.worker_ids) for m in await listed(cluster)] == [("digest", ["d2"]), ("new", ["d1"])]
    second.script.load_error = None
    await load(cluster, replace=True)
    assert [(m.digest, m.worker_ids) for m in await listed(cluster)] == [("new", ["d0", "d1", "d2"])]


def changes(cluster):
    """Each call that changes what a name stands for on the workers that have it."""
    yield load(cluster, replace=True)
    yield load(cluster, "math", "d2", replace=True)
    yield cluster.models.UnloadAdapter(pb.UnloadAdapterRequest(name="math"))
    yield cluster.models.PinAdapter(pb.PinAdapterRequest(name="math", pinned=True))


async def loaded_on_two(cluster):
    workers = await two_workers(cluster)
    await load(cluster)
    for fake in workers:
        fake.adapters = [stands_for("digest")]
    change_digest(cluster, "new")
    return workers


@pytest.mark.parametrize("late", [True, False], ids=["late", "failed"])
async def test_a_worker_that_would_come_back_with_the_old_weights_is_waited_for(cluster, late):
    first, second = await loaded_on_two(cluster)
    if late:
        cluster.silence(first, 4)
    else:
        cluster.table.instance("d1", "d1-1").failed = True
    for change in changes(cluster):
        await fails(change, grpc.StatusCode.UNAVAILABLE, "'math' is on d1, which cannot be reached now", "for 300 s")
    assert second.script.loaded and len(second.script.load_requests) == 1 and not second.script.pins
    await fails(load(cluster), grpc.StatusCode.FAILED_PRECONDITION, "digest new on worker d2 but digest elsewhere")
    await first.beat()
    assert (await load(cluster, replace=True)).model.worker_ids == ["d1", "d2"]
    assert [(model.digest, model.worker_ids) for model in await listed(cluster)] == [("new", ["d1", "d2"])]


async def test_a_worker_that_will_not_come_back_is_not_waited_for(cluster):
    first, second = await loaded_on_two(cluster)
    await first.beat(draining=True)
    assert (await load(cluster, replace=True)).model.worker_ids == ["d2"]
    await first.leave()
    cluster.silence(second, 61)
    third = await cluster.add("d3", digest="newer")  # makes the gateway look who is gone
    assert (await load(cluster)).model.worker_ids == ["d3"]
    await cluster.models.UnloadAdapter(pb.UnloadAdapterRequest(name="math"))
    assert not third.script.loaded


async def test_a_load_whose_answer_is_lost_is_undone(cluster):
    first, second = await two_workers(cluster)
    second.script.load_answer_lost = True
    await fails(load(cluster), grpc.StatusCode.UNAVAILABLE, "worker d2: gone")
    assert not first.script.loaded and not second.script.loaded
    second.script.unload_error = FailedPreconditionError("no")
    await fails(load(cluster), grpc.StatusCode.UNAVAILABLE, "gone; d2 may have 'math' all the same: load it again, or")
    second.script.load_answer_lost = False
    await load(cluster)
    second.script.load_answer_lost = True
    await fails(load(cluster, replace=True), grpc.StatusCode.UNAVAILABLE, "gone; d1, d2 may have the new weights")
    await fails(load(cluster), grpc.StatusCode.UNAVAILABLE, "worker d2: gone")
    assert first.script.loaded and second.script.loaded, "who had it before has it still"


async def test_a_load_that_hangs_holds_up_its_own_name_alone(model, new_cluster):
    async with new_cluster(model, clock=lambda: 0.0, heartbeat_seconds=0.1) as cluster:
        first, second = await two_workers(cluster)
        await load(cluster, "physics")
        second.script.load_stalls = True
        loading = asyncio.create_task(load(cluster))
        await eventually(lambda: len(second.script.load_requests) == 2)
        await cluster.models.PinAdapter(pb.PinAdapterRequest(name="physics", pinned=True))
        unloading = asyncio.ensure_future(cluster.models.UnloadAdapter(pb.UnloadAdapterRequest(name="math")))
        await asyncio.wait((unloading,), timeout=0.05)
        assert not loading.done() and not unloading.done()
        cluster.silence(second)
        await fails(loading, grpc.StatusCode.UNAVAILABLE, "worker d2 was not heard of any more")
        await fails(unloading, grpc.StatusCode.NOT_FOUND, "'math' is not here; loaded adapters: physics")
        assert list(first.script.loaded) == ["physics"]


async def test_a_load_may_take_only_so_long(cluster, monkeypatch):
    first, second = await two_workers(cluster)
    monkeypatch.setattr("icarus_gateway.cluster.adapter_calls._LIMIT_SECONDS", 1.0)
    second.script.load_stalls = True
    await fails(
        load(cluster),
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "worker d2: Deadline Exceeded; a worker has 1 s for adapter 'math'",
    )
    assert not first.script.loaded


async def test_pinning_reaches_every_worker_that_has_it(cluster):
    first, second = await two_workers(cluster)
    await cluster.add("d3")
    await load(cluster, "math", "d1", "d2")
    for pinned in (True, False):
        await cluster.models.PinAdapter(pb.PinAdapterRequest(name="math", pinned=pinned))
        assert first.script.pins["math"] is second.script.pins["math"] is pinned
        assert [model.pinned for model in await listed(cluster)] == [pinned]
    await fails(
        cluster.models.PinAdapter(pb.PinAdapterRequest(name="x", pinned=True)), grpc.StatusCode.NOT_FOUND, "'x'", "math"
    )


async def pin(cluster):
    await cluster.models.PinAdapter(pb.PinAdapterRequest(name="math", pinned=True))


async def test_a_pin_that_one_worker_refuses_is_undone(cluster):
    first, second = await two_workers(cluster)
    await load(cluster)
    second.script.pin_error = OverloadedError("all 2 slots are pinned")
    await fails(pin(cluster), grpc.StatusCode.RESOURCE_EXHAUSTED, "worker d2: all 2 slots are pinned")
    assert first.script.pins == {"math": False} and [model.pinned for model in await listed(cluster)] == [False]
    second.script.pin_error = UnavailableError("gone")
    await fails(pin(cluster), grpc.StatusCode.UNAVAILABLE, "d2: gone; d2 may have 'math' pinned all the same: pin it a")


async def test_a_refused_pin_leaves_those_that_had_it_pinned(cluster):
    first, second = await two_workers(cluster)
    await load(cluster, "math", "d1", pin=True)
    await load(cluster, "math", "d2")
    second.script.pin_error = OverloadedError("all 2 slots are pinned")
    await fails(pin(cluster), grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert first.script.pins == {"math": True} and [model.pinned for model in await listed(cluster)] == [True]


async def test_a_load_that_pins_and_is_refused_pins_nowhere(cluster):
    first, second = await two_workers(cluster)
    await load(cluster)
    second.script.load_error = OverloadedError("all 2 slots are pinned")
    await fails(load(cluster, pin=True), grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert first.script.loaded and first.script.pins == {"math": False}
    assert [model.pinned for model in await listed(cluster)] == [False]


async def test_who_holds_the_weights_is_listed(cluster):
    first, second = await two_workers(cluster)
    first.adapters = [stands_for("m", resident=True, pinned=True)]
    second.adapters = [stands_for("m", resident=False)]
    for fake in (first, second):
        await fake.beat()
    base, model = (await cluster.models.ListModels(pb.ListModelsRequest())).models
    assert base.resident_worker_ids == base.worker_ids == ["d1", "d2"]
    assert (model.worker_ids, model.resident_worker_ids, model.pinned) == (["d1", "d2"], ["d1"], True)


async def test_a_turn_goes_on_only_where_its_digest_is(cluster):
    first, second = await two_workers(cluster, die_after=2)
    first.adapters, second.adapters = [stands_for("old")], [stands_for("new")]
    for fake in (first, second):
        await fake.beat()
    await fails(
        ask(cluster),
        grpc.StatusCode.FAILED_PRECONDITION,
        "'math' was replaced",
        "digest old",
        "digest new",
        "ask again",
    )
    assert [len(fake.script.begun) for fake in (first, second)] == [1, 0]
    same = await cluster.add("d3", answer=[A, B, C, D])
    same.adapters = [stands_for("old")]
    await same.beat()
    await first.beat()
    assert await ask(cluster) == ([A, B, C, D], "d3")
    assert same.script.begun[0].adapter_digest == "old" and same.script.begun[0].num_output_tokens == 2


async def beat_until(worker, done):
    """The turn listens for a heartbeat only once the worker has refused it."""
    while not done.done():
        await worker.beat()
        await asyncio.sleep(0.01)


async def test_a_turn_that_comes_just_after_a_reload_takes_the_new_weights(cluster):
    """Another gateway replaced them: this one learns of it from the worker's refusal and its next heartbeat."""
    worker = await cluster.add("d1", answer=[A])
    worker.adapters = [stands_for("old")]
    await worker.beat()
    worker.script.refusals["old"] = NotFoundError("'math' stands for new")
    asking = asyncio.create_task(ask(cluster, max_tokens=1))
    await eventually(lambda: worker.script.begun)
    worker.adapters = [stands_for("new")]
    await beat_until(worker, asking)
    assert await asking == ([A], "d1")
    assert [begin.adapter_digest for begin in worker.script.begun] == ["old", "new"]


async def test_a_turn_that_comes_just_after_a_change_of_mode_takes_the_new_one(cluster):
    worker = await cluster.add("d1", answer=[A])
    worker.adapters = [stands_for("same", mode="private")]
    await worker.beat()
    worker.script.refusals["private"] = NotFoundError("'math' is shared")
    asking = asyncio.create_task(ask(cluster, max_tokens=1))
    await eventually(lambda: worker.script.begun)
    worker.adapters = [stands_for("same")]
    await beat_until(worker, asking)
    assert await asking == ([A], "d1")
    assert [begin.adapter_mode for begin in worker.script.begun] == ["private", "shared"]


async def test_a_worker_that_cannot_read_the_weights_again_is_left_out(cluster):
    first, second = await two_workers(cluster)
    await load(cluster)
    first.script.refusals["digest"] = FailedPreconditionError("'math' was evicted and cannot be read again")
    assert await ask(cluster) == ([A, B, C, D], "d2")
    second.script.refusals["digest"] = FailedPreconditionError("'math' was evicted here too")
    await fails(ask(cluster), grpc.StatusCode.FAILED_PRECONDITION, "worker d2: 'math' was evicted here too")
    assert await ask(cluster, model="base") == ([A, B, C, D], "d1"), "the workers themselves are well"


async def test_names_and_paths_are_bounded(cluster):
    await cluster.add("d1")
    await fails(load(cluster, "n" * 129), grpc.StatusCode.INVALID_ARGUMENT, "name has 129 characters", "at most 128")
    request = pb.LoadAdapterRequest(name="a", path="p" * 1025)
    await fails(cluster.models.LoadAdapter(request), grpc.StatusCode.INVALID_ARGUMENT, "path has 1025", "1024")
