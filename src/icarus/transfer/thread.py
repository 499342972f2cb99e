"""The transfer thread: sole owner of a worker's transport, with a bounded queue in front of it.

It exists because posting a read may block its caller for the whole copy. Answers are `concurrent.futures.Future`s that
no caller can cancel; their callbacks run on this thread and must be short.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from icarus.errors import DeadlineError, IcarusError, OverloadedError
from icarus.transfer.transport import ReadState, TransferError, Transport

logger = logging.getLogger(__name__)

_SHORTEST_PAUSE = 50e-6
_LONGEST_PAUSE = 2e-3
_LONGEST_PAUSE_OVERDUE = 20e-3
"""Seconds between polls: while a reader waits, and while only reads are left that nobody waits for."""
_IDLE_WAIT_SECONDS = 1.0
_MARGIN_SECONDS = 5.0
_STOP_SECONDS = 10.0


class TransferThreadFailedError(IcarusError):
    """A bug ended the transfer thread: this worker can read from no other any more."""


class TransferQueueFullError(OverloadedError):
    """Too much waits for this worker's own transfer thread."""


@dataclass(frozen=True)
class ReadResult:
    """A finished read. `seconds`: from its post to the poll that saw it done."""

    num_bytes: int
    seconds: float


@dataclass(frozen=True)
class PendingRead:
    """A read under way.

    `result` fails with TransferError, or with DeadlineError past the timeout. `settled` completes, always after
    `result`, when no more bytes can land: only then may the local blocks be used for anything else.
    """

    result: Future[ReadResult]
    settled: Future[None]


@dataclass(frozen=True)
class _Connect:
    peer: str
    metadata: bytes
    num_blocks: int
    answer: Future[None]


@dataclass(frozen=True)
class _Disconnect:
    peer: str
    answer: Future[None]


@dataclass(frozen=True)
class _Read:
    peer: str
    remote_blocks: Sequence[int]
    local_blocks: Sequence[int]
    deadline: float
    pending: PendingRead


@dataclass
class _Posted:
    read: _Read
    handle: Any
    since: float
    failed: bool = False
    """The transport says that it failed and that its bytes may still land."""


_Command = _Connect | _Disconnect | _Read


class TransferThread:
    """Runs a transport. Methods may be called from any thread once `start` has returned.

    `read_timeout_seconds` counts from the call of `read`. `max_queued` bounds the commands that wait for the thread;
    past it they are refused with TransferQueueFullError. A peer that dies fails its own reads and nothing else.
    `ended` completes with the thread, with TransferThreadFailedError where a bug ended it.
    """

    def __init__(
        self,
        make_transport: Callable[[], Transport],
        read_timeout_seconds: float,
        max_queued: int,
        hold_reads: Callable[[], bool] = lambda: False,
    ):
        """While `hold_reads` says so, posted reads stay under way; it is asked where there are some."""
        self._hold_reads = hold_reads
        self._make_transport = make_transport
        self._timeout = read_timeout_seconds
        self._max_queued = max_queued
        self._commands: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()
        self._posted: list[_Posted] = []
        self._started: Future[bytes] = _future()
        self._stopping = threading.Event()
        self._closed = False
        self._submitting = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="icarus-transfer", daemon=True)
        self._last_round = time.monotonic()
        self.ended: Future[None] = _future()
        self.metadata = b""
        self.reads = 0
        self.bytes_read = 0
        """Of reads that were done in time."""

    @property
    def age_seconds(self) -> float:
        """Seconds since the thread last came round its loop: large when a call of the transport hangs."""
        return time.monotonic() - self._last_round

    @property
    def max_wait_seconds(self) -> float:
        """A caller that has had no answer for this long need not wait: the thread hangs."""
        return self._timeout + _MARGIN_SECONDS

    @property
    def num_stuck(self) -> int:
        """Reads that failed a read timeout ago or more and may still land, for all that the transport knows."""
        past = time.monotonic() - self._timeout
        return sum(posted.failed and posted.read.deadline < past for posted in self._posted)

    def start(self) -> None:
        """Returns when the transport is up; raises what making it raised."""
        self._thread.start()
        self.metadata = self._started.result()

    def stop(self, seconds: float = _STOP_SECONDS) -> bool:
        """Fails what waits, gives posted reads one more read timeout to settle, and closes the transport. False where
        the thread has not ended after that time and `seconds` more: it hangs."""
        self._stopping.set()
        self._commands.put(None)
        if self._thread.is_alive():
            self._thread.join(self._timeout + seconds)
        return not self._thread.is_alive()

    def connect(self, peer: str, metadata: bytes, num_blocks: int) -> Future[None]:
        """Makes a peer readable, as `Transport.connect`. The future fails with TransferError."""
        answer: Future[None] = _future()
        self._submit(_Connect(peer, metadata, num_blocks, answer))
        return answer

    def disconnect(self, peer: str) -> Future[None]:
        """Forgets a peer; its reads in flight go on."""
        answer: Future[None] = _future()
        self._submit(_Disconnect(peer, answer))
        return answer

    def read(self, peer: str, remote_blocks: Sequence[int], local_blocks: Sequence[int]) -> PendingRead:
        """Reads block remote_blocks[i] of the peer's pool into local_blocks[i] of ours."""
        pending = PendingRead(_future(), _future())
        deadline = time.monotonic() + self._timeout
        self._submit(_Read(peer, tuple(remote_blocks), tuple(local_blocks), deadline, pending))
        return pending

    def _submit(self, command: _Command) -> None:
        with self._submitting:
            if self._closed:
                raise TransferError(f"the transfer thread has stopped; {command.peer} cannot be reached through it")
            if self._commands.qsize() >= self._max_queued:
                raise TransferQueueFullError(f"{self._max_queued} transfer commands wait already; try again")
            self._commands.put(command)

    def _run(self) -> None:
        try:
            transport = self._make_transport()
            metadata = transport.metadata()
        except BaseException as error:
            self._refuse_commands()
            self._started.set_exception(error)
            return
        self._started.set_result(metadata)
        try:
            self._serve(transport)
        except Exception as error:
            logger.critical("the transfer thread failed", exc_info=error)
            failure = TransferThreadFailedError(f"the transfer thread ended: {type(error).__name__}: {error}")
            self.ended.set_exception(failure)
        finally:
            self._refuse_commands()
            self._shut_down(transport)
        if not self.ended.done():
            self.ended.set_result(None)

    def _serve(self, transport: Transport) -> None:
        pause = _SHORTEST_PAUSE
        while not self._stopping.is_set():
            self._last_round = time.monotonic()
            command = self._next_command(pause if self._posted else _IDLE_WAIT_SECONDS)
            if command:
                self._execute(transport, command)
            settled = self._poll(transport)
            pause = _SHORTEST_PAUSE if command or settled else min(pause * 2, self._longest_pause())

    def _next_command(self, timeout: float) -> _Command | None:
        try:
            return self._commands.get(timeout=timeout)
        except queue.Empty:
            return None

    def _longest_pause(self) -> float:
        waited_for = any(not posted.read.pending.result.done() for posted in self._posted)
        return _LONGEST_PAUSE if waited_for else _LONGEST_PAUSE_OVERDUE

    def _execute(self, transport: Transport, command: _Command) -> None:
        if isinstance(command, _Read):
            self._post(transport, command)
            return
        try:
            if isinstance(command, _Connect):
                transport.connect(command.peer, command.metadata, command.num_blocks)
            else:
                transport.disconnect(command.peer)
        except Exception as error:
            command.answer.set_exception(_as_icarus_error(error, f"{type(command).__name__[1:]} {command.peer}"))
        else:
            command.answer.set_result(None)

    def _post(self, transport: Transport, read: _Read) -> None:
        since = time.monotonic()
        try:
            if since >= read.deadline:
                raise self._timed_out(read)
            handle = transport.post_read(read.peer, read.remote_blocks, read.local_blocks)
        except Exception as error:
            read.pending.result.set_exception(_as_icarus_error(error, f"a read from {read.peer}"))
            read.pending.settled.set_result(None)
        else:
            self._posted.append(_Posted(read, handle, since))

    def _poll(self, transport: Transport) -> bool:
        """Polls every posted read; whether one settled."""
        held = bool(self._posted) and self._hold_reads()
        before = len(self._posted)
        self._posted = [posted for posted in self._posted if not self._settle(transport, posted, held)]
        return len(self._posted) < before

    def _settle(self, transport: Transport, posted: _Posted, held: bool) -> bool:
        """Polls one read and answers what is known; whether it settled. A failed one that has not is polled on."""
        read, result = posted.read, posted.read.pending.result
        try:
            state = ReadState.PENDING if held else transport.poll(posted.handle)
        except Exception as error:
            posted.failed = True
            if not result.done():
                result.set_exception(_as_icarus_error(error, f"a read from {read.peer}"))
            return False
        now = time.monotonic()
        if state is ReadState.PENDING:
            if now >= read.deadline and not result.done():
                result.set_exception(self._timed_out(read))
            return False
        self._answer(read, state, len(read.local_blocks) * transport.region.block_bytes, now - posted.since)
        try:
            transport.release(posted.handle)
        except Exception:
            logger.exception("releasing a settled read from %s", read.peer)
        read.pending.settled.set_result(None)
        return True

    def _answer(self, read: _Read, state: ReadState, num_bytes: int, seconds: float) -> None:
        if read.pending.result.done():  # it was given up, and counts as that
            return
        if state is ReadState.DONE:
            self.reads += 1
            self.bytes_read += num_bytes
            read.pending.result.set_result(ReadResult(num_bytes, seconds))
        else:
            count = len(read.local_blocks)
            failure = TransferError(f"the read of {count} blocks from {read.peer} failed; connect to it again")
            read.pending.result.set_exception(failure)

    def _timed_out(self, read: _Read) -> DeadlineError:
        count = len(read.local_blocks)
        return DeadlineError(f"the read of {count} blocks from {read.peer} took longer than {self._timeout:g} s")

    def _refuse_commands(self) -> None:
        with self._submitting:
            self._closed = True
        while not self._commands.empty():
            command = self._commands.get_nowait()
            if command:
                stopped = TransferError(f"the transfer thread stopped before it reached {command.peer}")
                if isinstance(command, _Read):
                    command.pending.result.set_exception(stopped)
                    command.pending.settled.set_result(None)
                else:
                    command.answer.set_exception(stopped)

    def _shut_down(self, transport: Transport) -> None:
        deadline = time.monotonic() + self._timeout
        while self._posted and time.monotonic() < deadline:
            self._poll(transport)
            time.sleep(_LONGEST_PAUSE)
        try:
            transport.close()
        except Exception:
            logger.exception("closing the transport; %d reads may still land", len(self._posted))
            return
        for posted in self._posted:
            if not posted.read.pending.result.done():
                stopped = TransferError(f"the transfer thread stopped during a read from {posted.read.peer}")
                posted.read.pending.result.set_exception(stopped)
            posted.read.pending.settled.set_result(None)


def _future() -> Future[Any]:
    """A future that is running already, so that no caller (nor asyncio on its behalf) can cancel it."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future


def _as_icarus_error(error: Exception, what: str) -> IcarusError:
    if isinstance(error, IcarusError):
        return error
    wrapped = TransferError(f"{what} failed: {str(error) or type(error).__name__}")
    wrapped.__cause__ = error
    return wrapped
