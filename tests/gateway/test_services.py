"""Registration, adapters and the cluster's state through the gateway's own services."""

import grpc
import grpc.aio
import pytest
from waiting import eventually

from icarus.errors import FailedPreconditionError, InvalidInputError
from icarus.v1 import cluster_service_pb2, model_service_pb2
from icarus.worker.v1 import registry_service_pb2


async def fails(call, code, told):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is code and told in caught.value.details(), caught.value


async def listed(cluster):
    answer = await cluster.models.ListModels(model_service_pb2.ListModelsRequest())
    return {model.name: (model.mode, model.digest, list(model.worker_ids)) for model in answer.models}


def load(cluster, name="math", *workers, mode=model_service_pb2.ADAPTER_MODE_UNSPECIFIED):
    return cluster.models.LoadAdapter(
        model_service_pb2.LoadAdapterRequest(name=name, path="folder", mode=mode, worker_ids=workers)
    )


def unload(cluster, name="math"):
    return cluster.models.UnloadAdapter(model_service_pb2.UnloadAdapterRequest(name=name))


SHARED, PRIVATE = model_service_pb2.ADAPTER_MODE_SHARED, model_service_pb2.ADAPTER_MODE_PRIVATE


async def test_registration(cluster):
    worker = await cluster.add("d1")
    assert (await worker.register()).heartbeat_interval_seconds == 5.0
    refused = grpc.StatusCode.FAILED_PRECONDITION
    await fails(worker.register(worker_id="d2", base_digest="c"), refused, "base_digest c, but worker d1")
    await fails(worker.register(protocol_version=9), refused, "protocol version 9")
    for field in ("worker_id", "instance_id", "address", "cache_fingerprint"):
        await fails(worker.register(**{field: ""}), grpc.StatusCode.INVALID_ARGUMENT, field)
    await fails(worker.register(role="cook"), grpc.StatusCode.INVALID_ARGUMENT, "'cook'")
    await fails(worker.register(block_size=0), grpc.StatusCode.INVALID_ARGUMENT, "block_size is 0")
    await fails(worker.beat(instance_id="other"), grpc.StatusCode.NOT_FOUND, "register first")
    await worker.beat()


async def test_block_reports(cluster):
    worker = await cluster.add("d1")
    names = [bytes([i]) * 32 for i in range(4)]
    assert (await worker.report(0, names[:2])).next_sequence == 2
    assert (await worker.report(3, names[3:])).next_sequence == 2
    snapshot = registry_service_pb2.ReportBlocksRequest(
        worker_id="d1", instance_id="d1-1", first_sequence=4, snapshot={"block_hashes": names}
    )
    assert (await cluster.registry.ReportBlocks(snapshot)).next_sequence == 4
    snapshot.instance_id = "d1-2"
    await fails(cluster.registry.ReportBlocks(snapshot), grpc.StatusCode.NOT_FOUND, "d1-2")


async def test_shared_adapters_go_to_decode_workers(cluster):
    for name, role in (("d1", "decode"), ("d2", "decode"), ("p1", "prefill")):
        await cluster.add(name, role=role)
    assert await listed(cluster) == {"base": (0, "", ["d1", "d2"])}
    model = (await load(cluster)).model
    assert (model.name, model.mode, list(model.worker_ids)) == ("math", SHARED, ["d1", "d2"])
    assert (await listed(cluster))["math"] == (SHARED, "digest", ["d1", "d2"])
    assert not cluster.fakes["p1"].script.loaded
    await unload(cluster)
    assert list(await listed(cluster)) == ["base"]
    assert not cluster.fakes["d1"].script.loaded
    await fails(unload(cluster), grpc.StatusCode.NOT_FOUND, "'math'")


async def test_private_adapters_go_to_prefill_workers_too(cluster):
    for name, role in (("d1", "decode"), ("p1", "prefill")):
        await cluster.add(name, role=role)
    assert list((await load(cluster, mode=PRIVATE)).model.worker_ids) == ["d1", "p1"]
    assert cluster.fakes["p1"].script.loaded == {"math": "private"}
    await unload(cluster)
    assert not cluster.fakes["p1"].script.loaded


async def test_chosen_workers(cluster):
    for name, role in (("d1", "decode"), ("d2", "decode"), ("p1", "prefill")):
        await cluster.add(name, role=role)
    assert list((await load(cluster, "math", "d2")).model.worker_ids) == ["d2"]
    await fails(load(cluster, "x", "d3"), grpc.StatusCode.NOT_FOUND, "live workers: d1, d2, p1")
    await fails(load(cluster, "x", "p1"), grpc.StatusCode.INVALID_ARGUMENT, "'p1' prefills")


@pytest.mark.parametrize("failing", ["d2", "p1"])
async def test_loaded_everywhere_or_nowhere(cluster, failing):
    for name, role in (("d1", "decode"), ("d2", "decode"), ("p1", "prefill")):
        await cluster.add(name, role=role)
    script = cluster.fakes[failing].script
    for error, code in (
        (FailedPreconditionError("another base"), grpc.StatusCode.FAILED_PRECONDITION),
        (InvalidInputError("truncated"), grpc.StatusCode.INVALID_ARGUMENT),
    ):
        script.load_error = error
        await fails(load(cluster, mode=PRIVATE), code, f"worker {failing}: {error}")
        assert not any(fake.script.loaded for fake in cluster.fakes.values())
        assert list(await listed(cluster)) == ["base"]
    script.load_error = None
    await load(cluster, mode=PRIVATE)


async def test_one_name_means_one_adapter(cluster):
    for name in ("d1", "d2"):
        await cluster.add(name)
    cluster.fakes["d2"].script.digest = "other"
    await fails(load(cluster), grpc.StatusCode.FAILED_PRECONDITION, "digest other on worker d2 but digest elsewhere")
    assert not any(fake.script.loaded for fake in cluster.fakes.values())
    await load(cluster, "math", "d1")
    await fails(load(cluster, "math", "d2"), grpc.StatusCode.FAILED_PRECONDITION, "digest other")
    await fails(load(cluster, "math", "d2", mode=PRIVATE), grpc.StatusCode.ALREADY_EXISTS, "loaded as shared already")
    assert (await listed(cluster))["math"] == (SHARED, "digest", ["d1"])
    await fails(load(cluster, "base"), grpc.StatusCode.ALREADY_EXISTS, "base model's name")
    await fails(load(cluster, ""), grpc.StatusCode.INVALID_ARGUMENT, "name is ''")


async def test_no_worker_to_load_on(cluster):
    await fails(load(cluster), grpc.StatusCode.UNAVAILABLE, "no decode worker")


async def test_the_cluster(cluster):
    await cluster.add("p1", role="prefill")
    dead = await cluster.add("d2")
    await cluster.add("d1")
    await dead.server.drain(0)
    answer = await cluster.cluster.GetCluster(cluster_service_pb2.GetClusterRequest())
    assert [(worker.worker_id, worker.role) for worker in answer.workers] == [("d1", "decode"), ("p1", "prefill")]
    assert answer.block_size == 4 and answer.workers[0].free_blocks == 7
    assert [(worker.worker_id, worker.role) for worker in answer.left_out] == [("d2", "decode")]


async def test_a_worker_that_missed_its_heartbeats_is_named(new_cluster, model):
    async with new_cluster(model, heartbeat_seconds=0.1) as cluster:
        await cluster.add("d1")
        await eventually(lambda: not cluster.table.live())
        answer = await cluster.cluster.GetCluster(cluster_service_pb2.GetClusterRequest())
        assert not answer.workers and answer.block_size == 0
        assert answer.left_out[0].worker_id == "d1" and 0.3 <= answer.left_out[0].silent_seconds < 60
