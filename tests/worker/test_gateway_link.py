"""What a worker tells a gateway, in whatever order things happen: every block, and the age of its engine's step."""

import asyncio
import threading
from types import SimpleNamespace

import pytest
import torch
from engine.harness import Harness
from tiny import tiny_llama
from waiting import eventually

from icarus.engine.thread import EngineThread
from icarus.errors import NotFoundError
from icarus.rpc.server import Service, make_server
from icarus.types import BlockHash, Role, WorkerId
from icarus.worker.change_feed import ChangeFeed
from icarus.worker.gateway_link import GatewayLink
from icarus.worker.v1 import registry_service_pb2 as pb
from icarus.worker.v1 import registry_service_pb2_grpc as pb_grpc
from icarus.worker.worker import Identity

IDENTITY = Identity(WorkerId("w"), "w-1", Role.DECODE, "tiny", "digest", "fingerprint", 4, 64, 1024, 512, 320)
NAMES = [BlockHash(bytes([i]) * 32) for i in range(8)]


class Registry(pb_grpc.RegistryServiceServicer):
    """A gateway's side, which mirrors the names by the reports alone."""

    def __init__(self):
        self.beats: list[pb.HeartbeatRequest] = []
        self.reports: list[pb.ReportBlocksRequest] = []
        self.names: set[bytes] = set()
        self.lose_next = False
        """Answer the next changes as if the ones before them had not come."""
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.knows_nobody = False
        """As after a restart, until somebody registers."""

    async def Register(self, request, context):
        self.knows_nobody = False
        return pb.RegisterResponse(heartbeat_interval_seconds=0.05)

    async def Heartbeat(self, request, context):
        if self.knows_nobody:
            raise NotFoundError("register first")
        self.beats.append(request)
        return pb.HeartbeatResponse()

    async def ReportBlocks(self, request, context):
        self.reports.append(request)
        await self.may_answer.wait()
        if request.HasField("snapshot"):
            self.names = set(request.snapshot.block_hashes)
            return pb.ReportBlocksResponse(next_sequence=request.first_sequence)
        if self.lose_next:
            self.lose_next = False
            return pb.ReportBlocksResponse(next_sequence=request.first_sequence - 1)
        self.names |= {change.block_hash for change in request.changes}
        return pb.ReportBlocksResponse(next_sequence=request.first_sequence + len(request.changes))

    def kinds(self) -> list[tuple[str, int]]:
        """Of the reports: (snapshot or changes, number of the first change)."""
        return [("snapshot" if r.HasField("snapshot") else "changes", r.first_sequence) for r in self.reports]


class Side:
    """A worker with one link to a Registry."""

    def __init__(self, folder):
        self.harness = Harness(folder)
        feed = ChangeFeed()
        self.engine = EngineThread(self.harness.engine, feed.publish_threadsafe)
        self.registry = Registry()
        self.server = make_server("127.0.0.1:0", [Service.of(self.registry)])
        adapters = SimpleNamespace(list=lambda: (), revision=0)
        worker = SimpleNamespace(identity=IDENTITY, adapters=adapters, engine=self.engine)
        self.link = GatewayLink(self.server.address, worker, feed, "127.0.0.1:1")
        self.running: asyncio.Task[None] | None = None

    def run(self) -> None:
        self.running = asyncio.create_task(self.link.run())

    async def name(self, *numbers: int) -> None:
        """The engine names blocks, one round of its thread each."""
        for number in numbers:
            await asyncio.wrap_future(self.engine.post(lambda engine, number=number: self._name(engine, number)))

    def _name(self, engine, number: int) -> None:
        engine.pool.name(engine.pool.allocate(1)[0], NAMES[number], "")

    async def told(self, *numbers: int) -> None:
        """Waits until the gateway knows these names."""
        await eventually(lambda: self.registry.names >= {NAMES[number] for number in numbers})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    return tiny_llama(tmp_path_factory.mktemp("link") / "tiny")


@pytest.fixture
async def side(folder):
    side = Side(folder)
    side.engine.start()
    await side.server.start()
    yield side
    side.registry.may_answer.set()
    if side.running:
        side.running.cancel()
        await asyncio.gather(side.running, return_exceptions=True)
    await side.server.drain(0)
    assert await asyncio.to_thread(side.engine.stop)


async def test_a_gateway_that_missed_changes_gets_a_snapshot(side):
    side.run()
    await side.name(0)
    await side.told(0)
    side.registry.lose_next = True
    await side.name(1)
    await side.told(0, 1)
    assert side.registry.kinds()[-1] == ("snapshot", 2)
    await side.name(2)
    await side.told(0, 1, 2)
    assert side.registry.kinds()[-1] == ("changes", 2)


async def test_a_gateway_that_falls_too_far_behind_gets_a_snapshot(side, monkeypatch):
    """Its silence begins with changes on their way: their answer says nothing of what was dropped since."""
    monkeypatch.setattr("icarus.worker.gateway_link._MAX_PENDING", 2)
    side.run()
    await side.name(0)
    await side.told(0)
    side.registry.may_answer.clear()
    count = len(side.registry.reports)
    await side.name(1)
    await eventually(lambda: len(side.registry.reports) > count)
    await side.name(2, 3, 4)
    await eventually(lambda: side.link._next_sequence == 5)
    side.registry.may_answer.set()
    await side.told(0, 1, 2, 3, 4)
    assert side.registry.kinds()[-1] == ("snapshot", 5)


async def test_a_gateway_that_restarted_gets_a_snapshot(side):
    side.run()
    await side.name(0, 1)
    await side.told(0, 1)
    registry, count = side.registry, len(side.registry.reports)
    registry.names.clear()
    registry.knows_nobody = True
    await side.told(0, 1)
    assert registry.kinds()[count:] == [("snapshot", 2)]


async def test_heartbeats_tell_how_the_worker_is_now(side):
    side.run()
    await eventually(lambda: side.registry.beats)
    await side.name(0)
    await eventually(lambda: side.registry.beats[-1].available_blocks == 63)


async def test_changes_that_a_snapshot_told_are_not_told_again(side):
    """The engine makes the snapshot in the round that names a block, before the round's changes reach the link."""
    in_command, go_on = threading.Event(), threading.Event()
    side.engine.post(lambda engine: (in_command.set(), go_on.wait(60)))
    await eventually(in_command.is_set)
    naming = asyncio.create_task(side.name(0))
    await asyncio.sleep(0)
    side.run()
    await eventually(lambda: side.engine._commands.qsize() == 3)  # the name, the link's state and its snapshot
    go_on.set()
    await naming
    await side.told(0)
    await side.name(1)
    await side.told(0, 1)
    assert side.registry.kinds() == [("snapshot", 1), ("changes", 1)]


async def test_heartbeats_go_on_and_tell_the_age_of_an_engine_that_hangs(side):
    side.run()
    beats = side.registry.beats
    await eventually(lambda: beats)
    go_on = threading.Event()
    held = side.engine.post(lambda engine: go_on.wait(60))
    await eventually(lambda: beats[-1].engine_age_seconds > 1.0)
    before, age = len(beats), beats[-1].engine_age_seconds
    await eventually(lambda: len(beats) >= before + 3)
    assert beats[-1].engine_age_seconds > age
    go_on.set()
    assert await asyncio.wrap_future(held)
    await eventually(lambda: beats[-1].engine_age_seconds < 1.0)
