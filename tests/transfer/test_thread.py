"""The transfer thread's promises, on the in-process transport and on faults injected into it."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from transfer.inprocess import InProcessTransport
from waiting import wait_until

from icarus.errors import ConfigError, DeadlineError
from icarus.transfer.thread import TransferQueueFullError, TransferThread, TransferThreadFailedError
from icarus.transfer.transport import PoolRegion, ReadState, TransferError, Transport, decode_metadata

BLOCKS, BLOCK_BYTES = 8, 96


def region_of(pool: np.ndarray) -> PoolRegion:
    return PoolRegion(pool.ctypes.data, pool.shape[1], pool.shape[0], "cpu")


@pytest.fixture
def source() -> Iterator[tuple[np.ndarray, bytes]]:
    """A pool of random bytes and its metadata."""
    pool = np.random.default_rng(0).integers(0, 256, (BLOCKS, BLOCK_BYTES), dtype=np.uint8)
    transport = InProcessTransport(region_of(pool))
    yield pool, transport.metadata()
    transport.close()


@pytest.fixture
def run_thread() -> Iterator[Callable[..., TransferThread]]:
    threads: list[TransferThread] = []

    def run(make: Callable[[], Transport], timeout: float = 5, max_queued: int = 16) -> TransferThread:
        threads.append(TransferThread(make, timeout, max_queued))
        threads[-1].start()
        return threads[-1]

    yield run
    for thread in threads:
        thread.stop()


class HeldTransport(InProcessTransport):
    """Copies when asked to, and polls as the test says: a state, or an exception to raise."""

    def __init__(self, region: PoolRegion):
        super().__init__(region)
        self.outcome: ReadState | Exception = ReadState.PENDING
        self.gate = threading.Event()
        self.gate.set()
        self.released = 0
        self.posted = 0

    def post_read(self, peer: str, remote_blocks: Sequence[int], local_blocks: Sequence[int]) -> ReadState:
        self.gate.wait()
        self.posted += 1
        return super().post_read(peer, remote_blocks, local_blocks)

    def poll(self, handle: ReadState) -> ReadState:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def release(self, handle: ReadState) -> None:
        assert self.outcome in (ReadState.DONE, ReadState.FAILED), "released before it settled"
        self.released += 1


TIMEOUT = 0.2


@pytest.fixture
def held(source: tuple[np.ndarray, bytes], run_thread: Callable[..., TransferThread]):
    """A started thread over a HeldTransport that is connected to `source`; its reads have time enough."""
    yield from hold(source, run_thread, timeout=60)


@pytest.fixture
def hasty(source: tuple[np.ndarray, bytes], run_thread: Callable[..., TransferThread]):
    """As `held`; its reads time out after `TIMEOUT`."""
    yield from hold(source, run_thread, TIMEOUT)


def hold(source: tuple[np.ndarray, bytes], run_thread: Callable[..., TransferThread], timeout: float):
    pool = np.zeros((BLOCKS, BLOCK_BYTES), dtype=np.uint8)
    transport = HeldTransport(region_of(pool))
    thread = run_thread(lambda: transport, timeout=timeout, max_queued=2)
    thread.connect("peer", source[1], BLOCKS).result(5)
    yield thread, transport
    transport.gate.set()
    assert pool.any() or not thread.reads


def test_reads_bytes_and_counts_them(source: tuple[np.ndarray, bytes], run_thread: Callable[..., TransferThread]):
    pool = np.zeros((BLOCKS, BLOCK_BYTES), dtype=np.uint8)
    thread = run_thread(lambda: InProcessTransport(region_of(pool)))
    thread.connect("peer", source[1], BLOCKS).result(5)
    read = thread.read("peer", [7, 0, 3], [1, 2, 5])
    assert read.result.result(5).num_bytes == 3 * BLOCK_BYTES
    assert read.settled.done(), "whoever has the result knows whether bytes may still land"
    assert np.array_equal(pool[[1, 2, 5]], source[0][[7, 0, 3]])
    assert not pool[[0, 3, 4, 6, 7]].any()
    assert (thread.reads, thread.bytes_read) == (1, 3 * BLOCK_BYTES)


@pytest.mark.parametrize(
    ("peer", "remote", "local"),
    [
        ("nobody", [0], [0]),
        ("peer", [], []),
        ("peer", [0, 1], [0]),
        ("peer", [BLOCKS], [0]),
        ("peer", [0], [-1]),
    ],
)
def test_a_read_that_cannot_be_posted_answers_both_futures(
    source: tuple[np.ndarray, bytes],
    run_thread: Callable[..., TransferThread],
    peer: str,
    remote: list[int],
    local: list[int],
):
    pool = np.zeros((BLOCKS, BLOCK_BYTES), dtype=np.uint8)
    thread = run_thread(lambda: InProcessTransport(region_of(pool)))
    thread.connect("peer", source[1], BLOCKS).result(5)
    read = thread.read(peer, remote, local)
    with pytest.raises(TransferError, match=peer):
        read.result.result(5)
    assert read.settled.done()
    thread.read("peer", [0], [0]).result.result(5)


def test_start_raises_what_making_the_transport_raised():
    def make() -> Transport:
        raise ConfigError("no such device")

    thread = TransferThread(make, 1, 1)
    with pytest.raises(ConfigError, match="no such device"):
        thread.start()
    with pytest.raises(TransferError, match="stopped"):
        thread.read("peer", [0], [0])
    thread.stop()


def test_a_read_past_its_timeout_is_polled_until_it_settles(hasty: tuple[TransferThread, HeldTransport]):
    thread, transport = hasty
    read = thread.read("peer", [0], [0])
    with pytest.raises(DeadlineError, match=r"peer took longer than 0\.2 s"):
        read.result.result(5)
    assert not read.settled.done()
    assert transport.released == 0
    transport.outcome = ReadState.DONE
    read.settled.result(5)
    wait_until(lambda: transport.released == 1)
    assert (thread.reads, thread.bytes_read) == (0, 0), "its blocks were computed"


def test_a_failed_read_that_may_still_write_is_not_settled(held: tuple[TransferThread, HeldTransport]):
    thread, transport = held
    transport.outcome = TransferError("one of its blocks failed")
    read = thread.read("peer", [0], [0])
    with pytest.raises(TransferError, match="one of its blocks"):
        read.result.result(5)
    assert not read.settled.done()
    transport.outcome = ReadState.FAILED
    read.settled.result(5)
    assert thread.reads == 0


def test_a_failed_read_that_does_not_settle_for_another_timeout_is_stuck(hasty: tuple[TransferThread, HeldTransport]):
    thread, transport = hasty
    hanging = thread.read("peer", [0], [0])
    assert isinstance(hanging.result.exception(5), DeadlineError)
    transport.outcome = TransferError("one of its blocks failed")
    wait_until(lambda: thread.num_stuck == 1)
    transport.outcome = ReadState.FAILED
    hanging.settled.result(5)
    assert thread.num_stuck == 0


def test_a_read_that_only_hangs_is_not_stuck(hasty: tuple[TransferThread, HeldTransport]):
    thread, transport = hasty
    hanging = thread.read("peer", [0], [0])
    started = time.monotonic()
    wait_until(lambda: time.monotonic() - started > 3 * TIMEOUT)
    assert thread.num_stuck == 0
    transport.outcome = ReadState.DONE
    hanging.settled.result(5)


def test_a_call_of_the_transport_that_hangs_shows_in_the_age_and_at_the_end(
    hasty: tuple[TransferThread, HeldTransport],
):
    thread, transport = hasty
    wait_until(lambda: thread.age_seconds < 0.1)
    transport.gate.clear()
    thread.read("peer", [0], [0])
    wait_until(lambda: thread.age_seconds > 1.5, 20)  # an idle thread comes round once a second
    assert not thread.ended.done()
    assert not thread.stop(0.05)
    transport.outcome = ReadState.DONE
    transport.gate.set()
    assert thread.ended.result(10) is None
    assert thread.stop()


def test_a_bug_that_ends_the_thread_is_told(held: tuple[TransferThread, HeldTransport], monkeypatch):
    thread, _ = held
    monkeypatch.setattr(thread, "_execute", lambda *_: 1 / 0)
    thread.connect("peer", b"", BLOCKS)
    with pytest.raises(TransferThreadFailedError, match="ZeroDivisionError"):
        thread.ended.result(5)


def test_a_fault_of_the_transport_does_not_end_the_thread(held: tuple[TransferThread, HeldTransport]):
    thread, transport = held
    transport.outcome = RuntimeError("out of luck")
    read = thread.read("peer", [0], [0])
    with pytest.raises(TransferError, match="out of luck"):
        read.result.result(5)
    transport.outcome = ReadState.DONE
    read.settled.result(5)
    thread.read("peer", [0], [0]).result.result(5)


def test_a_full_queue_refuses(held: tuple[TransferThread, HeldTransport]):
    thread, transport = held
    transport.outcome = ReadState.DONE
    transport.gate.clear()
    accepted = []
    with pytest.raises(TransferQueueFullError, match="2 transfer commands"):
        for _ in range(4):  # one blocks the thread, two wait
            accepted.append(thread.read("peer", [0], [0]))  # noqa: PERF401
    transport.gate.set()
    for read in accepted:
        read.result.result(5)


def test_a_read_that_waited_past_its_timeout_is_never_posted(hasty: tuple[TransferThread, HeldTransport]):
    thread, transport = hasty
    transport.outcome = ReadState.DONE
    transport.gate.clear()
    first, second = thread.read("peer", [0], [0]), thread.read("peer", [1], [1])
    started = time.monotonic()
    wait_until(lambda: time.monotonic() - started > 2 * TIMEOUT)
    transport.gate.set()
    first.settled.result(5)
    with pytest.raises(DeadlineError):
        second.result.result(5)
    second.settled.result(5)
    assert transport.posted <= 1, "the first one too where the thread came to it late"


def test_stop_answers_everything(hasty: tuple[TransferThread, HeldTransport]):
    thread, _ = hasty
    read = thread.read("peer", [0], [0])
    thread.stop()
    assert isinstance(read.result.exception(0), TransferError | DeadlineError)
    assert read.settled.done()
    with pytest.raises(TransferError, match="stopped"):
        thread.connect("peer", b"", BLOCKS)


class SettlesLate(HeldTransport):
    """Reads settle some polls after the thread was told to stop."""

    stopping = threading.Event()
    num_polls = 3

    def poll(self, handle: ReadState) -> ReadState:
        self.num_polls -= self.stopping.is_set()
        self.outcome = ReadState.PENDING if self.num_polls else ReadState.DONE
        return self.outcome


def test_a_read_that_is_under_way_at_the_end_may_settle(
    source: tuple[np.ndarray, bytes], run_thread: Callable[..., TransferThread]
):
    pool = np.zeros((BLOCKS, BLOCK_BYTES), dtype=np.uint8)
    transport = SettlesLate(region_of(pool))
    thread = run_thread(lambda: transport)
    thread.connect("peer", source[1], BLOCKS).result(5)
    read = thread.read("peer", [0], [0])
    transport.stopping = thread._stopping
    assert thread.stop()
    assert read.result.result(0).num_bytes == BLOCK_BYTES
    assert read.settled.done() and transport.released == 1


async def test_cancelling_a_waiter_cancels_no_read(held: tuple[TransferThread, HeldTransport]):
    thread, transport = held
    read = thread.read("peer", [0], [0])
    waiter = asyncio.ensure_future(asyncio.wrap_future(read.result))
    await asyncio.sleep(0.01)  # mostly until the thread has posted it; the promise holds before that too
    waiter.cancel()
    transport.outcome = ReadState.DONE
    await asyncio.wait_for(asyncio.wrap_future(read.settled), 5)
    assert read.result.result(5).num_bytes == BLOCK_BYTES


def test_metadata_of_another_layout_is_refused(source: tuple[np.ndarray, bytes]):
    own = PoolRegion(0, BLOCK_BYTES, 4, "cpu")
    decoded, _ = decode_metadata("inproc", own, source[1], BLOCKS)
    assert decoded == region_of(source[0])
    for kind, block_bytes, blocks in (
        ("nixl", BLOCK_BYTES, BLOCKS),
        ("inproc", 32, BLOCKS),
        ("inproc", BLOCK_BYTES, 9),
    ):
        with pytest.raises(TransferError, match="block bytes"):
            decode_metadata(kind, PoolRegion(0, block_bytes, 4, "cpu"), source[1], blocks)
    for garbage in (b"", source[1][:20], b"X" * 80):
        with pytest.raises(TransferError, match="not Icarus"):
            decode_metadata("inproc", own, garbage, BLOCKS)
