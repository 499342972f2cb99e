"""Reads: asked for, posted to the transport, answered, and settled once none of their bytes can land any more."""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from icarus.errors import DeadlineError, IcarusError
from icarus.transfer.answer import as_icarus_error, new_answer
from icarus.transfer.transport import ReadState, TransferError, Transport

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReadResult:
    """A finished read. `seconds`: from its post to the poll that saw it done."""

    num_bytes: int
    seconds: float


@dataclass(frozen=True)
class PendingRead:
    """A read under way.

    `result` fails with TransferError, or with DeadlineError past the timeout. `settled` completes when no more bytes
    can land: only then may the local blocks be used for anything else. Where `result` is there and `settled` is not,
    bytes may still land.
    """

    result: Future[ReadResult] = field(default_factory=new_answer)
    settled: Future[None] = field(default_factory=new_answer)


@dataclass(frozen=True)
class Read:
    """What was asked for, and its caller's `pending`. `deadline` is on the monotonic clock."""

    peer: str
    remote_blocks: Sequence[int]
    local_blocks: Sequence[int]
    deadline: float
    pending: PendingRead = field(default_factory=PendingRead)

    def fail(self, error: IcarusError) -> None:
        """Answers, unless it has been answered; bytes may still land."""
        if not self.pending.result.done():
            self.pending.result.set_exception(error)

    def end(self, error: IcarusError) -> None:
        """As `fail`; no more bytes can land."""
        self.pending.settled.set_result(None)
        self.fail(error)


@dataclass
class _Posted:
    read: Read
    handle: Any
    since: float
    failed: bool = False
    """The transport says that it failed and that its bytes may still land."""


class PostedReads:
    """The reads that were posted and have not settled. The transfer thread's, but for the counts, which all may read.

    A read that failed, or took too long, is answered at once and polled on until it settles.
    """

    def __init__(self, timeout_seconds: float, hold: Callable[[], bool]):
        """While `hold` says so, reads stay under way; it is asked where there are some."""
        self._timeout = timeout_seconds
        self._hold = hold
        self._posted: list[_Posted] = []
        self.num_done = 0
        self.bytes_done = 0
        """Of reads that were done in time."""

    def __len__(self) -> int:
        return len(self._posted)

    @property
    def waited_for(self) -> bool:
        """Whether somebody has no answer yet."""
        return any(not posted.read.pending.result.done() for posted in self._posted)

    @property
    def num_stuck(self) -> int:
        """Reads that failed a timeout ago or more and may still land, for all that the transport knows."""
        past = time.monotonic() - self._timeout
        return sum(posted.failed and posted.read.deadline < past for posted in self._posted)

    def post(self, transport: Transport, read: Read) -> None:
        since = time.monotonic()
        try:
            if since >= read.deadline:
                raise self._timed_out(read)
            handle = transport.post_read(read.peer, read.remote_blocks, read.local_blocks)
        except Exception as error:
            read.end(as_icarus_error(error, f"a read from {read.peer}"))
        else:
            self._posted.append(_Posted(read, handle, since))

    def poll(self, transport: Transport) -> bool:
        """Polls every read and answers what is known; whether one settled."""
        held = bool(self._posted) and self._hold()
        before = len(self._posted)
        self._posted = [posted for posted in self._posted if not self._settles(transport, posted, held)]
        return len(self._posted) < before

    def end(self) -> None:
        """The transport is closed: no more bytes can land."""
        for posted in self._posted:
            posted.read.end(TransferError(f"the transfer thread stopped during a read from {posted.read.peer}"))

    def _settles(self, transport: Transport, posted: _Posted, held: bool) -> bool:
        read = posted.read
        try:
            state = ReadState.PENDING if held else transport.poll(posted.handle)
        except Exception as error:
            posted.failed = True
            read.fail(as_icarus_error(error, f"a read from {read.peer}"))
            return False
        now = time.monotonic()
        if state is ReadState.PENDING:
            if now >= read.deadline:
                read.fail(self._timed_out(read))
            return False
        read.pending.settled.set_result(None)
        self._answer(read, state, len(read.local_blocks) * transport.region.block_bytes, now - posted.since)
        try:
            transport.release(posted.handle)
        except Exception:
            logger.exception("releasing a settled read from %s", read.peer)
        return True

    def _answer(self, read: Read, state: ReadState, num_bytes: int, seconds: float) -> None:
        if state is ReadState.FAILED:
            count = len(read.local_blocks)
            read.fail(TransferError(f"the read of {count} blocks from {read.peer} failed; connect to it again"))
        elif not read.pending.result.done():  # else it was given up, and counts as that
            self.num_done += 1
            self.bytes_done += num_bytes
            read.pending.result.set_result(ReadResult(num_bytes, seconds))

    def _timed_out(self, read: Read) -> DeadlineError:
        count = len(read.local_blocks)
        return DeadlineError(f"the read of {count} blocks from {read.peer} took longer than {self._timeout:g} s")
