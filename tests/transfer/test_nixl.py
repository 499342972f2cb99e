"""Reads between real processes over NIXL in DRAM: correct bytes, dead peers, restarted peers, stopped peers."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path

import numpy as np
import pytest
from waiting import wait_until

from icarus.errors import DeadlineError
from icarus.transfer.thread import TransferThread
from icarus.transfer.transport import PoolRegion, ReadState, TransferError

pytest.importorskip("nixl")
from icarus.transfer.nixl import NixlTransport, backend_parameters

BLOCKS, BLOCK_BYTES = 128, 64 * 1024
TCP = {"TLS": "tcp"}  # shared memory reads a stopped process's pool without its help; TCP needs the peer to run


class Peer:
    """A running tests/transfer/peer.py."""

    def __init__(self, seed: int, settings: dict[str, str] | None = None):
        self.seed = seed
        setting = "".join(f"{key}={value}" for key, value in (settings or {}).items()) or "-"
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("peer.py"), *map(str, (BLOCKS, BLOCK_BYTES, seed)), setting],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def pool(self) -> np.ndarray:
        rng = np.random.default_rng(self.seed)
        return rng.integers(0, 256, (BLOCKS, BLOCK_BYTES), dtype=np.uint8)

    def metadata(self) -> bytes:
        """Waits until the peer is up."""
        assert self.process.stdout
        return bytes.fromhex(self.process.stdout.readline())

    def send(self, number: signal.Signals) -> None:
        """Returns once the signal has had its effect: a kernel stops each thread a little after `kill` returns."""
        os.kill(self.process.pid, number)
        if number == signal.SIGKILL:
            self.process.wait()
        while number == signal.SIGSTOP and not self._is_stopped():
            time.sleep(0.001)

    def _is_stopped(self) -> bool:
        threads = Path(f"/proc/{self.process.pid}/task").glob("*/stat")
        return all(thread.read_text().rpartition(")")[2].split()[0] == "T" for thread in threads)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


class Reader:
    """A pool of this process and the thread that reads into it."""

    def __init__(self, timeout: float, settings: dict[str, str] | None = None):
        self.pool = np.zeros((BLOCKS, BLOCK_BYTES), dtype=np.uint8)
        region = PoolRegion(self.pool.ctypes.data, BLOCK_BYTES, BLOCKS, "cpu")
        self.thread = TransferThread(lambda: NixlTransport(region, settings), timeout, max_queued=64)
        self.thread.start()

    def connect(self, name: str, metadata: bytes) -> None:
        self.thread.connect(name, metadata, BLOCKS).result(20)

    def read(self, name: str, remote: list[int], local: list[int]) -> None:
        pending = self.thread.read(name, remote, local)
        assert pending.result.result(20).num_bytes == len(remote) * BLOCK_BYTES
        pending.settled.result(20)


@pytest.fixture
def start_peer() -> Iterator[Callable[..., Peer]]:
    peers: list[Peer] = []

    def start(seed: int, settings: dict[str, str] | None = None) -> Peer:
        peers.append(Peer(seed, settings))
        return peers[-1]

    yield start
    for peer in peers:
        peer.end()


@pytest.fixture(scope="module")
def good_peer() -> Iterator[Peer]:
    """A peer that outlives the test, to show that others' troubles are not its own."""
    peer = Peer(seed=1)
    yield peer
    peer.end()


@pytest.fixture(scope="module")
def reader(good_peer: Peer) -> Iterator[Reader]:
    reader = Reader(timeout=10)
    reader.connect("good", good_peer.metadata())
    yield reader
    reader.thread.stop()


@pytest.fixture
def tcp_pair(start_peer: Callable[..., Peer]) -> Iterator[tuple[Reader, Peer]]:
    """A peer that can be stopped, and a reader with a short timeout, over TCP; one read has been made."""
    peer = start_peer(5, TCP)
    reader = Reader(timeout=0.5, settings=TCP)
    reader.connect("peer", peer.metadata())
    warm = reader.thread.read("peer", [0], [0])
    wait([warm.settled], 20)
    yield reader, peer
    peer.end()
    reader.thread.stop()


def test_reads_random_blocks_and_touches_no_others(reader: Reader, good_peer: Peer):
    rng, source = np.random.default_rng(0), good_peer.pool
    for count in (1, 3, 17, BLOCKS):
        reader.pool[:] = 0
        remote, local = rng.permutation(BLOCKS)[:count].tolist(), rng.permutation(BLOCKS)[:count].tolist()
        reader.read("good", remote, local)
        expected = np.zeros_like(reader.pool)
        expected[local] = source[remote]
        assert np.array_equal(reader.pool, expected)


def test_many_small_reads_in_sequence(reader: Reader, good_peer: Peer):
    rng, source = np.random.default_rng(1), good_peer.pool
    reads, bytes_read = reader.thread.reads, reader.thread.bytes_read
    for _ in range(500):
        remote, local = (int(index) for index in rng.integers(0, BLOCKS, 2))
        reader.pool[local] = 0
        reader.read("good", [remote], [local])
        assert np.array_equal(reader.pool[local], source[remote])
    assert reader.thread.reads - reads == 500
    assert reader.thread.bytes_read - bytes_read == 500 * BLOCK_BYTES


def test_several_reads_in_flight(reader: Reader, good_peer: Peer):
    reader.pool[:] = 0
    targets = np.arange(BLOCKS).reshape(16, -1)
    sources = targets[::-1]
    pending = [reader.thread.read("good", s.tolist(), t.tolist()) for s, t in zip(sources, targets, strict=True)]
    wait([read.settled for read in pending], 20)
    assert all(read.result.exception(5) is None for read in pending)
    assert np.array_equal(reader.pool[targets.ravel()], good_peer.pool[sources.ravel()])


def test_agents_that_start_and_connect_together(reader: Reader, start_peer: Callable[..., Peer]):
    peers = [start_peer(seed) for seed in (7, 8)]
    for peer in peers:
        reader.connect(str(peer.seed), peer.metadata())
    for peer in peers:
        reader.read(str(peer.seed), [2], [3])
        assert np.array_equal(reader.pool[3], peer.pool[2])


def test_a_gpus_pool_is_read_without_nvlink_too():
    """What UCX makes of it needs a GPU; that NIXL takes the setting does not."""
    pool = np.zeros((2, 64), dtype=np.uint8)
    on_cpu, on_gpu = (PoolRegion(pool.ctypes.data, 64, 2, device) for device in ("cpu", "cuda"))
    assert backend_parameters(on_cpu) == {}
    assert backend_parameters(on_gpu) == {"engine_config": "CUDA_IPC_ENABLE_GET_ZCOPY=on"}
    ours = {"CUDA_IPC_ENABLE_GET_ZCOPY": "off", **TCP}
    assert backend_parameters(on_gpu, ours) == {"engine_config": "CUDA_IPC_ENABLE_GET_ZCOPY=off,TLS=tcp"}
    NixlTransport(on_cpu, {"CUDA_IPC_ENABLE_GET_ZCOPY": "on"}).close()


def test_restarted_peer_rejoins_under_its_name(reader: Reader, start_peer: Callable[..., Peer]):
    for seed in (11, 12):
        peer = start_peer(seed)
        reader.connect("phoenix", peer.metadata())
        reader.read("phoenix", [3, 4], [7, 9])
        assert np.array_equal(reader.pool[[7, 9]], peer.pool[[3, 4]])
        peer.send(signal.SIGKILL)


def test_killed_peer_fails_its_own_reads_only(reader: Reader, good_peer: Peer, start_peer: Callable[..., Peer]):
    doomed = start_peer(21)
    metadata = doomed.metadata()
    reader.connect("doomed", metadata)
    reader.read("doomed", [0], [0])
    doomed.send(signal.SIGKILL)
    for _ in range(3):
        pending = reader.thread.read("doomed", [1, 2], [1, 2])
        assert isinstance(pending.result.exception(20), TransferError | DeadlineError)
        pending.settled.result(20)
    reader.read("good", [5], [6])
    assert np.array_equal(reader.pool[6], good_peer.pool[5])


def test_peer_killed_before_the_handshake(reader: Reader, good_peer: Peer, start_peer: Callable[..., Peer]):
    stillborn = start_peer(31)
    metadata = stillborn.metadata()
    stillborn.send(signal.SIGKILL)
    connected = reader.thread.connect("stillborn", metadata, BLOCKS)
    connected.exception(20)  # either is fine: UCX may notice now or at the first read
    pending = reader.thread.read("stillborn", [1], [1])
    assert isinstance(pending.result.exception(20), TransferError | DeadlineError)
    pending.settled.result(20)
    reader.read("good", [8], [2])
    assert np.array_equal(reader.pool[2], good_peer.pool[8])


def test_metadata_that_does_not_fit_is_refused(reader: Reader, start_peer: Callable[..., Peer]):
    own, other = reader.thread.metadata, start_peer(61).metadata()
    cases = (b"", b"junk" * 40, other[:-8], other[:100] + bytes(len(other) - 100), own)
    errors = [reader.thread.connect("odd", metadata, BLOCKS).exception(20) for metadata in cases]
    assert all(isinstance(error, TransferError) for error in errors), errors
    assert "this worker itself" in str(errors[-1])
    with pytest.raises(TransferError, match="block bytes"):
        reader.thread.connect("odd", own, BLOCKS + 1).result(20)


def test_disconnected_peer_cannot_be_read(reader: Reader, start_peer: Callable[..., Peer]):
    peer = start_peer(51)
    metadata = peer.metadata()
    reader.connect("left", metadata)
    reader.thread.disconnect("left").result(20)
    assert isinstance(reader.thread.read("left", [0], [0]).result.exception(20), TransferError)
    reader.connect("left", metadata)
    reader.read("left", [1], [0])
    assert np.array_equal(reader.pool[0], peer.pool[1])


def test_stopped_peer_times_out_and_settles_after_it_continues(tcp_pair: tuple[Reader, Peer]):
    reader, peer = tcp_pair
    blocks = list(range(BLOCKS))
    peer.send(signal.SIGSTOP)
    pending = reader.thread.read("peer", blocks, blocks)
    reader.thread.disconnect("peer").result(20)  # must not end the read in a way that hides its landing
    assert isinstance(pending.result.exception(20), DeadlineError)
    time.sleep(0.2)
    assert not pending.settled.done()
    reader.pool[:] = 0
    peer.send(signal.SIGCONT)
    pending.settled.result(20)
    assert np.array_equal(reader.pool, peer.pool), "the bytes of a read that was given up land all the same"


def test_peer_killed_during_a_read(tcp_pair: tuple[Reader, Peer]):
    reader, peer = tcp_pair
    peer.send(signal.SIGSTOP)
    pending = [reader.thread.read("peer", [block], [block]) for block in range(4)]
    time.sleep(0.1)
    peer.send(signal.SIGKILL)
    for read in pending:
        assert isinstance(read.result.exception(20), TransferError | DeadlineError)
        read.settled.result(20)


class Scripted:
    """An agent whose reads go as the test says: a status to return, or an error to raise."""

    def __init__(self, agent):
        self.agent = agent
        self.outcome: object = None

    def __getattr__(self, name: str):
        return getattr(self.agent, name)

    def postXferReq(self, *_):
        return self._say()

    def getXferStatus(self, *_):
        return self._say()

    def releaseXferReq(self, *_):
        pass

    def _say(self):
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.fixture
def scripted(start_peer: Callable[..., Peer]) -> Iterator[tuple[NixlTransport, Scripted]]:
    """A transport that is connected to "peer"."""
    pool = np.zeros((BLOCKS, BLOCK_BYTES), dtype=np.uint8)
    transport = NixlTransport(PoolRegion(pool.ctypes.data, BLOCK_BYTES, BLOCKS, "cpu"))
    transport.connect("peer", start_peer(71).metadata(), BLOCKS)
    transport._agent = agent = Scripted(transport._agent)
    yield transport, agent
    transport._agent = agent.agent
    transport.close()


def fails(transport: NixlTransport, read) -> bool:
    try:
        transport.poll(read)
    except TransferError:
        return True
    return False


@pytest.mark.parametrize("raised", [False, True])
@pytest.mark.parametrize("posted", [False, True])
@pytest.mark.parametrize("ending", ["NIXL_SUCCESS", "nixlRemoteDisconnectError", "nixlNotFoundError"])
def test_a_read_that_failed_settles_when_another_shows_that_nothing_is_under_way(scripted, raised, posted, ending):
    """NIXL's bindings raise errors, and may return them as well; the post may fail, or a later look at it."""
    transport, agent = scripted
    failure = transport._nixl.nixlBackendError("no luck") if raised else transport._nixl.NIXL_ERR_BACKEND
    agent.outcome = transport._nixl.NIXL_IN_PROG if posted else failure
    read = transport.post_read("peer", [0, 1], [0, 1])
    agent.outcome = failure
    assert not posted or fails(transport, read)
    agent.outcome = transport._nixl.NIXL_IN_PROG
    assert all(fails(transport, read) for _ in range(3)), "its bytes may still land"
    with pytest.raises(TransferError, match="a broken connection"):
        transport.post_read("peer", [2], [2])
    end = getattr(transport._nixl, ending)
    agent.outcome = end if ending == "NIXL_SUCCESS" else end("gone")
    assert transport.poll(read) is ReadState.FAILED
    transport.release(read)


def test_the_read_that_shows_it_ends_after_all_that_was_under_way(start_peer: Callable[..., Peer]):
    """The failed read is played; UCX still carries it, and the peer is stopped until the other is under way too."""
    peer, pool = start_peer(81, TCP), np.zeros((BLOCKS, BLOCK_BYTES), dtype=np.uint8)
    transport = NixlTransport(PoolRegion(pool.ctypes.data, BLOCK_BYTES, BLOCKS, "cpu"), TCP)
    transport.connect("peer", peer.metadata(), BLOCKS)
    warm = transport.post_read("peer", [0], [0])
    wait_until(lambda: transport.poll(warm) is ReadState.DONE)
    peer.send(signal.SIGSTOP)
    read = transport.post_read("peer", list(range(BLOCKS)), list(range(BLOCKS)))
    assert transport.poll(read) is ReadState.PENDING
    transport._fail(read, "played", settled=False)
    assert all(fails(transport, read) for _ in range(20))
    peer.send(signal.SIGCONT)
    wait_until(lambda: not fails(transport, read))
    assert transport.poll(read) is ReadState.FAILED
    assert np.array_equal(pool, peer.pool)
    for each in (warm, read):
        transport.release(each)
    transport.close()


def test_a_connection_that_broke_is_not_kept(scripted):
    """The same metadata again is a new attempt once the connection broke, not a silent success."""
    transport, agent = scripted
    first = transport._connections["peer"]
    transport.connect("peer", first.metadata, BLOCKS)
    assert transport._connections["peer"] is first
    agent.outcome = transport._nixl.nixlRemoteDisconnectError("gone")
    broken = transport.post_read("peer", [0], [0])
    assert transport.poll(broken) is ReadState.FAILED
    transport.release(broken)
    transport._agent = agent.agent
    transport.connect("peer", first.metadata, BLOCKS)
    assert transport._connections["peer"] is not first
    read = transport.post_read("peer", [0], [0])
    wait_until(lambda: transport.poll(read) is ReadState.DONE)
    transport.release(read)


def test_a_read_that_failed_on_an_agent_that_nixl_forgot_is_settled(scripted):
    transport, agent = scripted
    agent.outcome = transport._nixl.nixlBackendError("no luck")
    read = transport.post_read("peer", [0, 1], [0, 1])
    agent.invalidateRemoteMD(transport._connections["peer"].agent)
    assert transport.poll(read) is ReadState.FAILED
    transport.release(read)


def test_a_read_of_which_nothing_can_be_learned_stays_unsettled(scripted):
    transport, agent = scripted
    agent.outcome = transport._nixl.nixlBackendError("no luck")
    read = transport.post_read("peer", [0, 1], [0, 1])
    assert fails(transport, read)
    agent.outcome = transport._nixl.NIXL_SUCCESS
    assert all(fails(transport, read) for _ in range(3)), "NIXL does not ask UCX about either any more"
    transport.release(read)


def test_stopping_the_thread_ends_a_read_for_good(tcp_pair: tuple[Reader, Peer]):
    """Whether the continued owner answers into the void or is aborted by UCX (see nixl.py) differs from run to run."""
    reader, peer = tcp_pair
    peer.send(signal.SIGSTOP)
    pending = reader.thread.read("peer", list(range(BLOCKS)), list(range(BLOCKS)))
    time.sleep(0.1)
    reader.thread.stop()
    assert pending.result.done()
    assert pending.settled.done()
    reader.pool[:] = 0
    peer.send(signal.SIGCONT)
    time.sleep(0.5)
    assert not reader.pool.any()
