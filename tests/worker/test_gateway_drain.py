"""A link to a gateway that the test plays; the worker behind it is a stand-in."""

import asyncio
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from waiting import eventually

from icarus.engine.engine import Engine
from icarus.errors import NotFoundError
from icarus.rpc.server import Service, make_server
from icarus.worker.change_feed import ChangeFeed
from icarus.worker.gateway_link import GatewayLink
from icarus.worker.v1 import registry_service_pb2 as pb
from icarus.worker.v1 import registry_service_pb2_grpc as pb_grpc


class Registry(pb_grpc.RegistryServiceServicer):
    def __init__(self):
        self.heartbeats = []
        self.num_forgotten = 0
        """So many heartbeats find the worker forgotten."""

    async def Register(self, request, context):
        return pb.RegisterResponse(heartbeat_interval_seconds=600)

    async def Heartbeat(self, request, context):
        self.heartbeats.append(request)
        if len(self.heartbeats) <= self.num_forgotten:
            raise NotFoundError("register first")
        return pb.HeartbeatResponse()

    async def ReportBlocks(self, request, context):
        return pb.ReportBlocksResponse(next_sequence=0)


def stand_in():
    names = ("worker_id", "instance_id", "base_model", "base_digest", "fingerprint")
    numbers = ("block_size", "num_blocks", "context_length")
    identity = SimpleNamespace(role=SimpleNamespace(value="decode"), **dict.fromkeys(names, "x"))
    vars(identity).update(dict.fromkeys(numbers, 1))
    pool = SimpleNamespace(free=1, cached=2)
    state = SimpleNamespace(running_requests=0, waiting_requests=0, pool=pool)

    def post(command):
        future = Future()
        future.set_result(state if command is Engine.state else (0, []))
        return future

    engine = SimpleNamespace(age_seconds=0.0, post=post)
    return SimpleNamespace(identity=identity, engine=engine, adapters=SimpleNamespace(revision=0, list=list))


async def test_a_drain_is_told_at_once():
    registry = Registry()
    server = make_server("127.0.0.1:0", [Service.of(registry)])
    await server.start()
    link = GatewayLink(server.address, stand_in(), ChangeFeed(), "127.0.0.1:1")
    running = asyncio.create_task(link.run())
    await eventually(lambda: registry.heartbeats)
    link.announce_drain()
    await eventually(lambda: len(registry.heartbeats) == 2)
    assert [beat.draining for beat in registry.heartbeats] == [False, True]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await server.drain(0)


@pytest.mark.parametrize("num_rounds", range(5))
async def test_a_link_ends_when_it_is_told_whatever_happens_at_that_moment(num_rounds):
    """The drain was announced, and the gateway is going as well."""
    registry = Registry()
    server = make_server("127.0.0.1:0", [Service.of(registry)])
    await server.start()
    link = GatewayLink(server.address, stand_in(), ChangeFeed(), "127.0.0.1:1")
    running = asyncio.create_task(link.run())
    await eventually(lambda: registry.heartbeats)
    link.announce_drain()
    for _ in range(num_rounds):
        await asyncio.sleep(0)
    stopping = asyncio.create_task(server.drain(0))
    running.cancel()
    await asyncio.wait_for(asyncio.gather(running, return_exceptions=True), 10)
    await stopping


async def test_a_link_registers_again_with_a_gateway_that_forgot_it():
    """As one does that was restarted, again and again."""
    registry = Registry()
    server = make_server("127.0.0.1:0", [Service.of(registry)])
    await server.start()
    link = GatewayLink(server.address, stand_in(), ChangeFeed(), "127.0.0.1:1")
    registry.num_forgotten = 2
    running = asyncio.create_task(link.run())
    await eventually(lambda: len(registry.heartbeats) == 3)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await server.drain(0)
