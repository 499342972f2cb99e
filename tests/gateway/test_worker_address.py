"""A gateway whose workers register at an address of their own."""

import asyncio
import socket

import grpc
import grpc.aio
import pytest
from gateway.test_turns import A, B, C, D, collect, fails, stateless
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from ports import free_address
from waiting import eventually

from icarus.errors import ConfigError
from icarus.worker.v1 import registry_service_pb2_grpc

REGISTRY, SESSIONS = "icarus.worker.v1.RegistryService", "icarus.v1.SessionService"


@pytest.fixture
async def cluster(model, new_cluster):
    async with new_cluster(model, worker_address="127.0.0.1:0") as cluster:
        yield cluster


async def test_a_turn_goes_to_a_worker_that_registered_there(cluster):
    worker = await cluster.add("d1", answer=[A, B, C, D])
    await worker.beat()
    ids, _, finished = await collect(stateless(cluster))
    assert ids == [A, B, C, D] and finished.route.decode_worker == "d1"


async def test_neither_address_has_the_others_services(cluster):
    worker = await cluster.add("d1")
    worker.registry = registry_service_pb2_grpc.RegistryServiceStub(cluster.channel)
    for call in (worker.register(), worker.beat(), worker.report(0, []), worker.leave()):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert caught.value.details() == "Method not found!", "as docs/troubleshooting.md says"
    assert [worker.worker_id for worker in cluster.table.live()] == ["d1"]
    cluster.generation = type(cluster.generation)(cluster.worker_channel)
    await fails(stateless(cluster), grpc.StatusCode.UNIMPLEMENTED)


async def test_health_and_reflection_at_both(cluster):
    for channel, own, others in (
        (cluster.channel, SESSIONS, REGISTRY),
        (cluster.worker_channel, REGISTRY, SESSIONS),
    ):
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", own):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        replies = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]))
        listed = {service.name for service in (await replies.read()).list_services_response.service}
        assert own in listed and others not in listed


@pytest.mark.parametrize("setting", ["address", "worker_address"])
async def test_an_address_that_is_taken_is_named_with_its_setting(model, new_cluster, setting):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        taken_address = f"127.0.0.1:{taken.getsockname()[1]}"
        told = rf"\[gateway\] {setting}: cannot listen on {taken_address}: Address already in use"
        settings = {"address": "127.0.0.1:0", "worker_address": "127.0.0.1:0", setting: taken_address}
        with pytest.raises(ConfigError, match=told):
            async with new_cluster(model, **settings):
                pass


async def test_two_settings_of_one_address(model, new_cluster):
    address = free_address()
    with pytest.raises(ConfigError, match=rf"\[gateway\] worker_address: cannot listen on {address}"):
        async with new_cluster(model, address=address, worker_address=address):
            pass


async def test_a_gateway_that_drains_hears_its_workers_until_their_turns_end(new_process):
    """The turn stands still for longer than a worker may be silent."""
    async with new_process(worker_address=free_address(), heartbeat_seconds=0.1) as process:
        worker = await process.cluster.add("d1", answer=[A, B, C, D], pause_after=2)
        reading = asyncio.create_task(collect(stateless(process.cluster)))
        await eventually(lambda: worker.script.begun)
        process.signalled.set()
        for _ in range(40):
            await worker.beat()
            await asyncio.sleep(0.05)
        assert not reading.done() and not process.serving.done()
        worker.script.go_on.set()
        assert (await reading)[0] == [A, B, C, D]
        await asyncio.wait((process.serving,), timeout=10)
        assert process.serving.done()
        with pytest.raises(grpc.aio.AioRpcError):
            await worker.beat()
