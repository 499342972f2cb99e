"""Adapters at run time as the gateway sees them: replacing, pinning, and the digest that a turn holds on to."""

import asyncio

import grpc
import pytest
from waiting import eventually

from icarus.errors import FailedPreconditionError, NotFoundError
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
        "worker d2: another base; the new weights of 'math' are on d1 already: replace it again",
    )
    assert first.script.loaded and not third.script.loaded, "who did not have it before has not got it now"
    assert [(m.digest, m.worker_ids) for m in await listed(cluster)] == [("digest", ["d2"]), ("new", ["d1"])]
    second.script.load_error = None
    await load(cluster, replace=True)
    assert [(m.digest, m.worker_ids) for m in await listed(cluster)] == [("new", ["d0", "d1", "d2"])]


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


async def test_who_holds_the_weights_is_listed(cluster):
    first, second = await two_workers(cluster)
    first.adapters = [stands_for("m", resident=True, pinned=True)]
    second.adapters = [stands_for("m", resident=False)]
    for fake in (first, second):
        await fake.beat()
    (model,) = await listed(cluster)
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
