"""What a worker process does around its services: what it watches for, and how it leaves."""

import asyncio
from types import SimpleNamespace

import pytest
from waiting import eventually
from worker.test_gateway_drain import Registry, stand_in

from icarus.config import CacheSection, Config, EngineSection, TransferSection, WorkerSection
from icarus.rpc.server import Service, make_server
from icarus.worker import process
from icarus.worker.change_feed import ChangeFeed
from icarus.worker.v1 import registry_service_pb2 as pb


class Gateway(Registry):
    """Notes who takes leave."""

    def __init__(self):
        super().__init__()
        self.left: list[str] = []

    async def Deregister(self, request, context):
        self.left.append(request.instance_id)
        return pb.DeregisterResponse()


@pytest.fixture
async def gateway():
    gateway = Gateway()
    server = make_server("127.0.0.1:0", [Service.of(gateway)])
    await server.start()
    gateway.address = server.address
    yield gateway
    await server.drain(0)


@pytest.fixture
def serve(monkeypatch):
    """`serve(config, until)`: a worker that serves until `until` says so; what it is watched by."""

    async def serve(config: Config, until=lambda: True) -> tuple:
        watched = []
        monkeypatch.setattr(process, "watch", lambda *args: watched.append(args))
        monkeypatch.setattr(process, "serve_until_signal", lambda *args: eventually(until))
        worker = SimpleNamespace(**vars(stand_in()), transfer="transfer")
        await process._serve(config, worker, ChangeFeed(), SimpleNamespace(address="127.0.0.1:1"))
        return watched[0]

    return serve


async def test_a_worker_is_watched_by_the_limits_of_its_settings(serve):
    config = Config(
        cache=CacheSection(num_blocks=64),
        engine=EngineSection(max_step_seconds=7.0),
        transfer=TransferSection(max_leased_fraction=0.5, max_quarantined_fraction=0.25),
        worker=WorkerSection(gateways=()),
    )
    _, transfer, *limits = await serve(config)
    assert (transfer, limits) == ("transfer", [16, 7.0])


async def test_a_worker_that_ends_takes_leave_of_its_gateways(serve, gateway):
    config = Config(worker=WorkerSection(gateways=(gateway.address,)))
    await asyncio.wait_for(serve(config, until=lambda: gateway.heartbeats), 20)
    assert gateway.left == ["x"]
