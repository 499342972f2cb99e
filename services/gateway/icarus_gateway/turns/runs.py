"""Turns that run whether or not somebody listens: each in a task of its own, found again by its turn id."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass

from icarus.errors import AlreadyExistsError, ConflictError, InvalidInputError, NotFoundError
from icarus_gateway.turns.events import Delta, End, TurnEvent, join

MAX_DELTA_TOKENS = 256
"""Of one message. More would spare next to nothing, and other turns wait while it is read or made."""


@dataclass(frozen=True)
class TurnKey:
    """Which turn a caller means, and what it asked for: the same id with another request is a mistake."""

    tenant: str
    turn_id: str
    fingerprint: bytes


@dataclass(frozen=True)
class TurnCall:
    """How a caller asks for a turn: under which id, from which of its tokens on, and how many at a time."""

    tenant: str
    turn_id: str
    fingerprint: bytes | None
    """Of what is asked for, whoever listens and from where on. None where the caller gave no turn_id."""
    resume_from: int
    resumable: bool
    min_delta_tokens: int
    """Of the worker's messages, but for the first and the last. Who joins a turn gets what it was started with."""

    @property
    def key(self) -> TurnKey | None:
        """None for a turn that nobody can name."""
        return None if self.fingerprint is None else TurnKey(self.tenant, self.turn_id, self.fingerprint)


@dataclass(frozen=True)
class FinishedTurn:
    """A turn as it is remembered."""

    key: TurnKey
    events: tuple[TurnEvent, ...]
    """All of them, as the turn made them."""
    keep_seconds: float
    """Until it is forgotten."""

    async def play(self, run: "TurnRun") -> End:
        """Plays it again."""
        for event in self.events:
            if isinstance(event, Delta):
                run.emit(event)
        end = self.events[-1]
        assert isinstance(end, End)
        return end


Play = Callable[["TurnRun"], Awaitable[End]]
"""Plays a turn: emits its deltas to the run and returns its end, once the session has the turn and is free."""


class TurnRun:
    """One turn under way or done. It keeps all its deltas; whoever watches reads them from any token on.

    When its last watcher leaves, an unfinished turn is cancelled: at once, or `grace_seconds` later where one of its
    watchers asked for a resumable turn.
    """

    def __init__(self, play: Play, grace_seconds: float):
        self.error: BaseException | None = None
        self.end: End | None = None
        self._deltas: list[Delta] = []
        """One token each."""
        self._rest = ""
        """Text that came after the last token."""
        self._grace_seconds = grace_seconds
        self._resumable = False
        self._cancel_requested = False
        self._num_watchers = 0
        self._grace: asyncio.TimerHandle | None = None
        self._news = asyncio.Event()
        self.task = asyncio.create_task(self._run(play))
        self.task.add_done_callback(self._finished)

    @property
    def deltas(self) -> tuple[Delta, ...]:
        """So far, as they were emitted."""
        return (*self._deltas, Delta((), self._rest)) if self._rest else tuple(self._deltas)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """So far."""
        return tuple(token_id for delta in self._deltas for token_id in delta.token_ids)

    @property
    def failed(self) -> bool:
        return self.error is not None

    @property
    def size(self) -> int:
        """What is remembered of it, in tokens and log-probabilities."""
        return len(self._deltas) + sum(1 + len(entry.top) for delta in self._deltas for entry in delta.logprobs)

    @property
    def cancelling(self) -> bool:
        """Cancelled, and not done with it."""
        return self._cancel_requested and not self.task.done()

    def emit(self, delta: Delta) -> None:
        """Takes the turn's next delta."""
        if delta.token_ids:
            self._deltas.append(delta)
            self._tell()
        else:
            self._rest += delta.text

    async def _run(self, play: Play) -> None:
        self.end = await play(self)

    def _finished(self, task: asyncio.Task[None]) -> None:
        if self._grace is not None:
            self._grace.cancel()
        if task.cancelled():
            self.error = ConflictError("the turn was cancelled; ask again")
        else:
            self.error = task.exception()
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def watch(self, resume_from: int, resumable: bool) -> AsyncGenerator[TurnEvent]:
        """The turn's events from output token `resume_from` on; tokens that have come meanwhile share deltas.

        Raises what the turn raised, and InvalidInputError where it ends before `resume_from`.
        """
        self._enter(resumable)
        try:
            num_sent = resume_from
            while True:
                news = self._news
                if new := self._deltas[num_sent : num_sent + MAX_DELTA_TOKENS]:
                    num_sent += len(new)
                    yield join(new)
                elif not self.task.done() or (self.error is None and self.end is None):
                    await news.wait()
                else:
                    break
            if self.error is not None:
                raise self.error
            if resume_from > len(self._deltas):
                raise InvalidInputError(
                    f"resume_from is {resume_from}, but the turn has {len(self._deltas)} output tokens"
                )
            if self._rest:
                yield Delta((), self._rest)
            assert self.end is not None
            yield self.end
        finally:
            self._leave()

    def _enter(self, resumable: bool) -> None:
        self._num_watchers += 1
        self._resumable |= resumable
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None

    def _leave(self) -> None:
        self._num_watchers -= 1
        if self._num_watchers or self.task.done():
            return
        if self._resumable and self._grace_seconds > 0:
            self._grace = asyncio.get_running_loop().call_later(self._grace_seconds, self.cancel)
        else:
            self.cancel()

    def cancel(self) -> None:
        """Ends the turn, whoever watches it."""
        self._cancel_requested = True
        self.task.cancel()


@dataclass
class _Record:
    fingerprint: bytes
    run: TurnRun
    keep_seconds: float
    forget: asyncio.TimerHandle | None = None


class TurnRuns:
    """The turns that can be found by their id. A turn that failed or was cancelled is forgotten: its id is free again.

    A finished turn is remembered for `keep_seconds`, and the latest ones only: at most `max_kept` of a tenant, and of
    all together `max_size`, in tokens and log-probabilities.
    """

    def __init__(self, max_kept: int, max_size: int, keep_seconds: float, grace_seconds: float):
        self._max_kept = max_kept
        self._max_size = max_size
        self._keep_seconds = keep_seconds
        self._grace_seconds = grace_seconds
        self._running: dict[tuple[str, str], _Record] = {}
        self._kept: dict[str, OrderedDict[str, _Record]] = {}
        """Finished turns by tenant, oldest first."""
        self._ages: OrderedDict[tuple[str, str], int] = OrderedDict()
        """The sizes of all finished turns, oldest first."""
        self._size = 0

    def finished(self, key: TurnKey | None, events: tuple[TurnEvent, ...]) -> FinishedTurn | None:
        """What must be kept of a turn so that `restore` can give it again; None where it is not remembered."""
        if key is None or self._max_kept <= 0 or self._keep_seconds <= 0:
            return None
        return FinishedTurn(key, events, self._keep_seconds)

    def restore(self, turn: FinishedTurn) -> None:
        """Remembers a turn that an earlier process played. The latest one goes last."""
        self._start(turn.key, turn.play, min(turn.keep_seconds, self._keep_seconds))

    async def find_or_start(self, call: TurnCall, play: Play) -> TurnRun:
        """The turn of this id, or a new one. Waits for one that is being cancelled.

        Raises AlreadyExistsError where the id belongs to another request, and NotFoundError where there is no such turn
        to resume: a second one would not be the same.
        """
        key = call.key
        if key is None:
            return TurnRun(play, 0.0)
        name = (key.tenant, key.turn_id)
        while (record := self._find(name)) is not None and record.run.cancelling:
            await asyncio.wait((record.run.task,))
        if record is None:
            if call.resume_from > 0:
                raise NotFoundError(
                    f"turn {key.turn_id!r} is not known here, or not any more: it cannot be resumed from token "
                    f"{call.resume_from}; look at the session's history, or ask again under a new turn_id"
                )
            record = self._start(key, play, self._keep_seconds)
        elif record.fingerprint != key.fingerprint:
            raise AlreadyExistsError(
                f"turn_id {key.turn_id!r} belongs to another request; give every turn an id of its own"
            )
        return record.run

    async def cancel(self, tenant: str, turn_id: str) -> End | None:
        """Ends the turn of this id if it is under way, and waits until it has ended (CancelTurn). Its End where it had
        finished before."""
        record = self._find((tenant, turn_id))
        if record is None:
            return None
        if not record.run.task.done():
            record.run.cancel()
            await asyncio.wait((record.run.task,))
        return record.run.end

    async def settle(self) -> None:
        """Waits for the turns under way."""
        if tasks := [record.run.task for record in self._running.values()]:
            await asyncio.wait(tasks)

    def _start(self, key: TurnKey, play: Play, keep_seconds: float) -> _Record:
        name = (key.tenant, key.turn_id)
        record = _Record(key.fingerprint, TurnRun(play, self._grace_seconds), keep_seconds)
        self._running[name] = record
        record.run.task.add_done_callback(lambda _: self._ended(name, record))
        return record

    def _find(self, name: tuple[str, str]) -> _Record | None:
        tenant, turn_id = name
        return self._running.get(name) or self._kept.get(tenant, {}).get(turn_id)

    def _ended(self, name: tuple[str, str], record: _Record) -> None:
        del self._running[name]
        tenant, turn_id = name
        if record.run.failed or self._max_kept <= 0:
            return
        kept = self._kept.setdefault(tenant, OrderedDict())
        kept[turn_id] = record
        self._ages[name] = size = record.run.size
        self._size += size
        record.forget = asyncio.get_running_loop().call_later(record.keep_seconds, self._forget, tenant, turn_id)
        if len(kept) > self._max_kept:
            self._forget(tenant, next(iter(kept)))
        while self._size > self._max_size:
            self._forget(*next(iter(self._ages)))

    def _forget(self, tenant: str, turn_id: str) -> None:
        record = self._kept[tenant].pop(turn_id)
        self._size -= self._ages.pop((tenant, turn_id))
        if record.forget is not None:
            record.forget.cancel()
        if not self._kept[tenant]:
            del self._kept[tenant]
