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
from dataclasses import dataclass, field

from icarus.errors import IcarusError, OverloadedError
from icarus.transfer.answer import as_icarus_error, new_answer
from icarus.transfer.posted_reads import PendingRead, PostedReads, Read
from icarus.transfer.transport import TransferError, Transport

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
class _Call:
    """Of the transport, about a peer."""

    peer: str
    run: Callable[[Transport], None]
    answer: Future[None] = field(default_factory=new_answer)

    def execute(self, transport: Transport) -> None:
        try:
            self.run(transport)
        except Exception as error:
            self.end(as_icarus_error(error, f"a call of the transport about {self.peer}"))
        else:
            self.answer.set_result(None)

    def end(self, error: IcarusError) -> None:
        self.answer.set_exception(error)


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
        self._make_transport = make_transport
        self._timeout = read_timeout_seconds
        self._max_queued = max_queued
        self._commands: queue.SimpleQueue[_Call | Read | None] = queue.SimpleQueue()
        self._posted = PostedReads(read_timeout_seconds, hold_reads)
        self._started: Future[bytes] = new_answer()
        self._stopping = threading.Event()
        self._closed = False
        self._submitting = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="icarus-transfer", daemon=True)
        self._last_round = time.monotonic()
        self.ended: Future[None] = new_answer()
        self.metadata = b""

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
        """Reads that may never settle."""
        return self._posted.num_stuck

    @property
    def reads(self) -> int:
        """Those that were done in time."""
        return self._posted.num_done

    @property
    def bytes_read(self) -> int:
        return self._posted.bytes_done

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
        call = _Call(peer, lambda transport: transport.connect(peer, metadata, num_blocks))
        self._submit(call)
        return call.answer

    def disconnect(self, peer: str) -> Future[None]:
        """Forgets a peer; its reads in flight go on."""
        call = _Call(peer, lambda transport: transport.disconnect(peer))
        self._submit(call)
        return call.answer

    def read(self, peer: str, remote_blocks: Sequence[int], local_blocks: Sequence[int]) -> PendingRead:
        """Reads block remote_blocks[i] of the peer's pool into local_blocks[i] of ours."""
        read = Read(peer, tuple(remote_blocks), tuple(local_blocks), time.monotonic() + self._timeout)
        self._submit(read)
        return read.pending

    def _submit(self, command: _Call | Read) -> None:
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
            settled = self._posted.poll(transport)
            longest = _LONGEST_PAUSE if self._posted.waited_for else _LONGEST_PAUSE_OVERDUE
            pause = _SHORTEST_PAUSE if command or settled else min(pause * 2, longest)

    def _next_command(self, timeout: float) -> _Call | Read | None:
        try:
            return self._commands.get(timeout=timeout)
        except queue.Empty:
            return None

    def _execute(self, transport: Transport, command: _Call | Read) -> None:
        if isinstance(command, Read):
            self._posted.post(transport, command)
        else:
            command.execute(transport)

    def _refuse_commands(self) -> None:
        with self._submitting:
            self._closed = True
        while not self._commands.empty():
            command = self._commands.get_nowait()
            if command:
                command.end(TransferError(f"the transfer thread stopped before it reached {command.peer}"))

    def _shut_down(self, transport: Transport) -> None:
        deadline = time.monotonic() + self._timeout
        while self._posted and time.monotonic() < deadline:
            self._posted.poll(transport)
            time.sleep(_LONGEST_PAUSE)
        try:
            transport.close()
        except Exception:
            logger.exception("closing the transport; %d reads may still land", len(self._posted))
            return
        self._posted.end()
