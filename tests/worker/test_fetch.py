"""Reads of another worker's blocks: what was read counts only if the lease held, and every wait has an end."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from engine.harness import BLOCK_SIZE, Clock, Harness
from tiny import DEVICE, tiny_llama
from transfer.inprocess import InProcessTransport
from waiting import eventually

from icarus.engine.engine import Engine
from icarus.engine.request import Landing
from icarus.engine.thread import EngineThread
from icarus.errors import OverloadedError
from icarus.rpc.server import Server, Service, make_server
from icarus.transfer.posted_reads import ReadResult
from icarus.transfer.thread import TransferQueueFullError, TransferThread
from icarus.types import BlockHash, BlockSource, WorkerId
from icarus.worker.block_service import BlockServicer
from icarus.worker.fetch import BlockFetch, WantedBlocks
from icarus.worker.fetch_record import FetchFailure, FetchRecord, UnsettledReadError
from icarus.worker.peers import PeerTable
from icarus.worker.v1 import block_service_pb2 as pb

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="the in-process transport copies the CPU's memory alone")
NUM_BLOCKS = 8
TOKENS = list(range(3, 3 + NUM_BLOCKS * BLOCK_SIZE))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    return tiny_llama(tmp_path_factory.mktemp("fetch") / "tiny")


class Owner:
    """A worker that has TOKENS cached, and the block service through which others read them."""

    def __init__(self, folder, lease_seconds: float, clock=time.monotonic, address="127.0.0.1:0", instance_id="me"):
        self.harness = Harness(folder, lease_seconds=lease_seconds, clock=clock)
        self.hashes = tuple(self.harness.generate(TOKENS, max_tokens=1).request.block_hashes)
        self.engine = EngineThread(self.harness.engine, lambda sequence, changes: None)
        self.engine.start()
        identity = SimpleNamespace(instance_id=instance_id, fingerprint="fingerprint", num_blocks=64)
        transfer = SimpleNamespace(metadata=self.harness.transport.metadata())
        worker = SimpleNamespace(identity=identity, engine=self.engine, transfer=transfer)
        self.server: Server = make_server(address, [Service.of(BlockServicer(worker))])

    async def ask(self, command):
        return await asyncio.wrap_future(self.engine.post(command))

    async def leases(self) -> tuple[int, int, int]:
        """(granted, released, held)"""
        state = await self.ask(Engine.check)
        return state.leases_granted, state.leases_released, state.leases_held

    async def stop(self) -> None:
        await self.server.drain(0)
        assert await asyncio.to_thread(self.engine.stop)


class Transport(InProcessTransport):
    """Posts a read once the test lets it."""

    def __init__(self, region):
        super().__init__(region)
        self.may_post = threading.Event()
        self.may_post.set()
        self.posted = 0

    def post_read(self, peer, remote_blocks, local_blocks):
        assert self.may_post.wait(60)
        self.posted += 1
        return super().post_read(peer, remote_blocks, local_blocks)


@dataclass
class Reader:
    """A turn of another worker that wants TOKENS. While `hold` has True, posted reads stay under way."""

    owner: Owner
    harness: Harness
    transport: Transport
    transfer: TransferThread
    peers: PeerTable
    record: FetchRecord
    done: list[ReadResult]
    """What the record heard of."""
    fetch: BlockFetch
    wanted: WantedBlocks
    hold: list[bool]

    async def read(self) -> Landing:
        source = BlockSource(WorkerId("owner"), self.owner.server.address, NUM_BLOCKS)
        return await self.fetch.from_sources(self.wanted, [source])

    def check_bytes(self) -> None:
        pool = self.owner.harness
        source = pool.kv.tensor[pool.pool.match(self.owner.hashes)]
        assert torch.equal(self.harness.kv.tensor[list(self.wanted.block_ids)], source)


@pytest.fixture
async def new_reader(folder) -> AsyncIterator:
    readers: list[Reader] = []

    async def start(lease_seconds=10.0, read_timeout_seconds=20.0, clock=time.monotonic) -> Reader:
        owner, harness, hold = Owner(folder, lease_seconds, clock), Harness(folder), [False]
        await owner.server.start()
        transport = Transport(harness.transport.region)
        transfer = TransferThread(lambda: transport, read_timeout_seconds, 8, hold_reads=lambda: hold[0])
        transfer.start()
        done: list[ReadResult] = []
        peers, record = PeerTable(transfer, "fingerprint"), FetchRecord(done.append)
        fetch = BlockFetch(peers, transfer, record, "default", "turn")
        wanted = WantedBlocks(0, owner.hashes, tuple(harness.pool.allocate(NUM_BLOCKS)), BLOCK_SIZE)
        readers.append(Reader(owner, harness, transport, transfer, peers, record, done, fetch, wanted, hold))
        return readers[-1]

    yield start
    for reader in readers:
        reader.hold[0] = False
        reader.transport.may_post.set()
        await reader.peers.close()
        assert await asyncio.to_thread(reader.transfer.stop)
        await reader.owner.stop()


async def test_blocks_are_read_and_the_lease_is_given_back(new_reader):
    reader = await new_reader()
    landing = await reader.read()
    assert (len(landing.writers), landing.num_remote_tokens) == (NUM_BLOCKS, len(TOKENS))
    reader.check_bytes()
    assert await reader.owner.leases() == (1, 1, 0)
    assert not reader.record.failures and len(reader.done) == 1


async def test_what_one_source_lacks_is_read_from_the_next(new_reader, folder):
    """As where the first may lend no more than a few blocks."""
    reader = await new_reader()
    first = Owner(folder, 10.0, instance_id="first")
    first.harness.lender._max_leased_blocks = 3
    await first.server.start()
    sources = [
        BlockSource(WorkerId(name), owner.server.address, NUM_BLOCKS)
        for name, owner in (("first", first), ("owner", reader.owner))
    ]
    landing = await reader.fetch.from_sources(reader.wanted, sources)
    assert (len(landing.writers), landing.num_remote_tokens, reader.fetch.num_reads) == (NUM_BLOCKS, len(TOKENS), 2)
    reader.check_bytes()
    assert await first.leases() == await reader.owner.leases() == (1, 1, 0)
    await reader.peers.close()
    await first.stop()


async def test_what_was_read_under_a_lease_that_lapsed_is_thrown_away(new_reader):
    reader = await new_reader()
    reader.hold[0] = True
    reading = asyncio.create_task(reader.read())
    await eventually(lambda: reader.transport.posted)

    def lapse(engine: Engine) -> None:
        for block_ids in reader.owner.harness.leases.expire(time.monotonic() + 1000):
            engine.pool.release(block_ids)

    await reader.owner.ask(lapse)
    reader.hold[0] = False
    assert await reading == Landing()
    assert reader.record.failures == {FetchFailure.LAPSED: 1} and not reader.done, "it counts once"
    assert reader.fetch.num_reads == 0


async def test_a_read_that_outlives_its_lease_keeps_it_renewed(new_reader):
    reader = await new_reader(lease_seconds=1.5)
    reader.hold[0] = True
    reading, started = asyncio.create_task(reader.read()), time.monotonic()
    await eventually(lambda: reader.transport.posted)
    await eventually(lambda: time.monotonic() - started > 2 * 1.5)
    assert await reader.owner.leases() == (1, 0, 1)
    reader.hold[0] = False
    assert len((await reading).writers) == NUM_BLOCKS
    reader.check_bytes()


async def test_a_renewal_that_came_in_time_counts_although_a_step_kept_the_engine(new_reader, monkeypatch):
    clock = Clock()
    monkeypatch.setattr("icarus.worker.block_service.time", SimpleNamespace(monotonic=clock))
    reader = await new_reader(clock=clock)
    owner, in_step, go_on = reader.owner, threading.Event(), threading.Event()
    grant = await owner.ask(lambda engine: engine.acquire_lease(owner.hashes, 0))

    def hang() -> list:
        in_step.set()
        assert go_on.wait(60)
        monkeypatch.undo()
        return []

    monkeypatch.setattr(owner.harness.scheduler, "schedule", hang)
    await owner.ask(lambda engine: owner.harness.submit(TOKENS, max_tokens=1))
    await eventually(in_step.is_set)
    clock.now = 9.0
    blocks = reader.peers.get(owner.server.address).blocks
    renewing = asyncio.ensure_future(blocks.RenewLease(pb.RenewLeaseRequest(lease_id=grant.lease_id)))
    await eventually(lambda: owner.engine._commands.qsize() == 1)
    clock.now = 10.5
    go_on.set()
    assert (await renewing).duration_seconds == 10.0
    assert (await owner.leases())[2] == 1


async def test_a_release_is_answered_after_a_step_that_is_longer_than_the_lease(new_reader, monkeypatch):
    """The owner notes when it was asked, so the lease had not lapsed."""
    reader = await new_reader(lease_seconds=0.6)
    owner, in_step, go_on = reader.owner, threading.Event(), threading.Event()
    reader.hold[0] = True
    reading = asyncio.create_task(reader.read())
    await eventually(lambda: reader.transport.posted)
    schedule = owner.harness.scheduler.schedule

    def hang() -> list:
        in_step.set()
        assert go_on.wait(60)
        return schedule()

    monkeypatch.setattr(owner.harness.scheduler, "schedule", hang)
    await owner.ask(lambda engine: owner.harness.submit([3, 4, 5], max_tokens=1))
    await eventually(in_step.is_set)
    reader.hold[0] = False
    await eventually(lambda: reader.transfer.reads)
    await asyncio.sleep(1.3)
    go_on.set()
    assert len((await asyncio.wait_for(reading, 20)).writers) == NUM_BLOCKS
    reader.check_bytes()
    assert await owner.leases() == (1, 1, 0)


async def test_an_owner_that_restarted_between_grant_and_read_gives_nothing(new_reader, folder):
    reader = await new_reader()
    owner = reader.owner
    grant = await owner.ask(lambda engine: engine.acquire_lease(owner.hashes, 0))
    await owner.stop()
    reader.owner = Owner(folder, 10.0, address=owner.server.address, instance_id="me again")
    reader.owner.harness.kv.tensor.fill_(7)
    await reader.owner.server.start()
    assert await reader.fetch.from_grant(reader.wanted, owner.server.address, grant, 0) == Landing()
    assert reader.record.failures == {FetchFailure.LAPSED: 1}


async def test_a_turn_that_leaves_while_it_asks_for_a_lease_gives_it_back(new_reader):
    reader = await new_reader()
    in_command, go_on = threading.Event(), threading.Event()
    held = reader.owner.engine.post(lambda engine: (in_command.set(), go_on.wait(60)))
    await eventually(in_command.is_set)
    reading = asyncio.create_task(reader.read())
    await eventually(lambda: reader.owner.engine._commands.qsize() == 1)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    go_on.set()
    await asyncio.wrap_future(held)
    async with asyncio.timeout(20):
        while await reader.owner.leases() != (1, 1, 0):
            await asyncio.sleep(0.01)
    assert reader.transport.posted == 0


async def test_a_reader_that_dies_while_it_asks_for_a_lease_leaves_none(new_reader):
    """It cannot give back what it never heard of."""
    owner = (await new_reader()).owner
    in_command, go_on = threading.Event(), threading.Event()
    held = owner.engine.post(lambda engine: (in_command.set(), go_on.wait(60)))
    await eventually(in_command.is_set)
    servicer = BlockServicer(SimpleNamespace(engine=owner.engine))
    asking = asyncio.create_task(servicer.AcquireLease(pb.AcquireLeaseRequest(block_hashes=owner.hashes), None))
    await eventually(lambda: owner.engine._commands.qsize() == 1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    go_on.set()
    await asyncio.wrap_future(held)
    async with asyncio.timeout(20):
        while await owner.leases() != (1, 1, 0):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("change", [{"last_block_hash": BlockHash(b"x" * 32)}, {"first_block": 1}])
async def test_blocks_of_another_name_are_not_read(new_reader, change):
    """An adapter that changed from private to shared in mid-turn, say: the prefill worker's blocks have other names."""
    reader = await new_reader()
    owner = reader.owner
    grant = await owner.ask(lambda engine: engine.acquire_lease(owner.hashes, 0))
    assert await reader.fetch.from_grant(reader.wanted, owner.server.address, replace(grant, **change), 0) == Landing()
    assert reader.transport.posted == 0
    async with asyncio.timeout(20):
        while await owner.leases() != (1, 1, 0):
            await asyncio.sleep(0.01)


async def test_a_transfer_thread_that_hangs_keeps_no_turn(new_reader, monkeypatch):
    monkeypatch.setattr("icarus.transfer.thread._MARGIN_SECONDS", 0.3)
    reader = await new_reader(read_timeout_seconds=0.2)
    await reader.read()
    reader.transport.may_post.clear()
    with pytest.raises(UnsettledReadError, match="hangs"):
        await asyncio.wait_for(reader.read(), 20)
    unsettled = reader.fetch.take_unsettled()
    assert unsettled is not None and unsettled.blocks == reader.wanted.block_ids
    assert await asyncio.wait_for(reader.read(), 20) == Landing(), "nor can it be connected to anew"
    assert reader.record.failures == {FetchFailure.TIMEOUT: 2}
    reader.transport.may_post.set()
    await asyncio.wait_for(asyncio.wrap_future(unsettled.settled), 20)


def test_a_full_queue_of_ones_own_is_not_the_owners_refusal():
    record = FetchRecord()
    record.failed(TransferQueueFullError("8 transfer commands wait already"))
    record.failed(OverloadedError("all lent"))
    assert record.failures == {FetchFailure.LOCAL: 1, FetchFailure.REFUSED: 1}
