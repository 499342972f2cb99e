"""Where conversations are kept: one turn at a time, forgotten after some time without use."""

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from icarus.errors import (
    ConfigError,
    ConflictError,
    InvalidInputError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)
from icarus_gateway.sessions.history import History
from icarus_gateway.sessions.session_file import Changes, Longer, SessionFile, SessionRow
from icarus_gateway.turns.runs import FinishedTurn

DAY_SECONDS = 86_400.0


@dataclass(frozen=True)
class Session:
    tenant: str
    session_id: str
    history: History
    ttl_seconds: float
    expires_in_seconds: float
    """Until it is forgotten, unless it is used."""


@dataclass(frozen=True)
class SessionCounts:
    """Sessions that are kept and may be, and those made and ended since the start."""

    live: int = 0
    limit: int = 0
    created: int = 0
    expired: int = 0
    deleted: int = 0
    displaced: int = 0
    """Empty ones that made room for others."""
    refused: int = 0
    """Never made, for lack of room."""
    write_errors: int = 0
    """Changes that the session file did not take."""


@dataclass(frozen=True)
class SessionPage:
    """Sessions, oldest first. `next_after` is where the next page begins; None after the last."""

    sessions: tuple[Session, ...]
    next_after: int | None


class _Entry:
    def __init__(self, number: int, history: History, ttl_seconds: float, used_at: float):
        self.number = number
        """Sessions are numbered as they are created."""
        self.history = history
        self.ttl_seconds = ttl_seconds
        self.used_at = used_at
        self.held = False

    def expires_in(self, now: float) -> float:
        return self.ttl_seconds if self.held else self.ttl_seconds - (now - self.used_at)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Nobody else changes or forgets it meanwhile."""
        self.held = True
        try:
            yield
        finally:
            self.held = False


class HeldSession:
    """A session that only its holder changes."""

    def __init__(self, store: "SessionStore", entry: _Entry):
        self._store = store
        self._entry = entry

    @property
    def history(self) -> History:
        return self._entry.history

    async def commit(self, history: History, turn: FinishedTurn | None = None) -> None:
        """Takes the longer history as the session's; `turn` is the one that made it, to be remembered with it.

        Raises ValueError for one that does not begin with the old, UnavailableError where it cannot be written: then
        the session stays as it was. Once begun it is not cancelled.
        """
        if not history.starts_with(self.history):
            raise ValueError("a session's history is append-only")
        await self._store.write(longer=Longer(self._entry.number, history, len(self.history.places)), turn=turn)
        self._entry.history = history


class SessionStore:
    """The sessions of one gateway process, in memory and, where there is a file, on disk too. Used from one event loop.

    A session is found only under its own tenant, and until it expires: NotFoundError. Every call that names a session
    keeps it alive for its ttl from then on, and holding it for as long as it is held. What cannot be written raises
    UnavailableError and did not happen.
    """

    def __init__(
        self,
        max_sessions: int,
        ttl_seconds: float = DAY_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        file: SessionFile | None = None,
    ):
        """Raises ConfigError where `ttl_seconds` is not positive, or the file is damaged."""
        if not ttl_seconds > 0:
            raise ConfigError(f"[gateway] session_ttl_seconds is {ttl_seconds}; it must be above 0")
        self._max_sessions = max_sessions
        self._ttl_seconds = ttl_seconds
        self._clock = clock
        self._file = file
        self._num_created = self._num_expired = self._num_deleted = self._num_displaced = self._num_refused = 0
        self._last_number = 0
        self._tenants: dict[str, dict[str, _Entry]] = {}
        """Each tenant's sessions, oldest first."""
        self._gone: set[int] = set()
        """Sessions that the file still has."""
        self._swept_at = clock()
        self._file_epoch = self._swept_at - file.clock() if file else 0.0
        """When the file's clock was 0."""
        for row, history in file.sessions() if file else ():
            self._last_number = row.number
            used_at = row.used_at + self._file_epoch
            entry = _Entry(row.number, history, min(row.ttl_seconds, ttl_seconds), used_at)
            self._tenants.setdefault(row.tenant, {})[row.session_id] = entry

    async def create(self, tenant: str, history: History, ttl_seconds: float | None = None) -> Session:
        """Where there is no room, the session without tokens that was not used for longest makes room.

        Raises OverloadedError where there is none either, InvalidInputError for a ttl beyond the store's own.
        """
        ttl = self._ttl_seconds if ttl_seconds is None else ttl_seconds
        if not 0 < ttl <= self._ttl_seconds:
            raise InvalidInputError(f"ttl_seconds is {ttl}; it must be above 0 and at most {self._ttl_seconds}")
        if self._is_full() and (self._expire() == 0 or self._is_full()) and not self._displace_empty():
            self._num_refused += 1
            raise OverloadedError(f"the gateway keeps at most {self._max_sessions} sessions; delete some", 10.0)
        session_id = secrets.token_hex(12)
        self._last_number += 1
        entry = _Entry(self._last_number, history, ttl, self._clock())
        self._tenants.setdefault(tenant, {})[session_id] = entry
        row = SessionRow(entry.number, tenant, session_id, ttl, self._file_time(entry.used_at))
        try:
            with entry.hold():
                await self.write(created=row, longer=Longer(entry.number, history))
        except UnavailableError:
            self._forget(tenant, session_id)
            raise
        self._num_created += 1
        return _session(tenant, session_id, entry, entry.used_at)

    def get(self, tenant: str, session_id: str) -> Session:
        entry = self._use(tenant, session_id)
        return _session(tenant, session_id, entry, entry.used_at)

    def list(self, tenant: str, after: int, limit: int) -> SessionPage:
        """At most `limit` sessions of those that are younger than number `after`. Keeps none of them alive."""
        now = self._clock()
        entries = self._tenants.get(tenant, {}).items()
        found = [(key, entry) for key, entry in entries if entry.number > after and entry.expires_in(now) > 0]
        page = found[:limit]
        sessions = tuple(_session(tenant, key, entry, now) for key, entry in page)
        return SessionPage(sessions, page[-1][1].number if len(found) > len(page) else None)

    async def delete(self, tenant: str, session_id: str) -> None:
        """Raises ConflictError while a turn is under way."""
        entry = self._use(tenant, session_id)
        if entry.held:
            raise ConflictError(f"session {session_id!r} has a turn under way; cancel it or wait for its end")
        with entry.hold():
            await self.write(deleted=entry.number)
        self._forget(tenant, session_id)
        self._num_deleted += 1

    @contextmanager
    def hold(self, tenant: str, session_id: str) -> Iterator[HeldSession]:
        """The sole right to change the session, within a `with`. Raises ConflictError while somebody else has it."""
        entry = self._use(tenant, session_id)
        if entry.held:
            raise ConflictError(f"session {session_id!r} has a turn under way; wait for its end")
        try:
            with entry.hold():
                yield HeldSession(self, entry)
        finally:
            entry.used_at = self._clock()

    def counts(self) -> SessionCounts:
        return SessionCounts(
            live=self._num_live,
            limit=self._max_sessions,
            created=self._num_created,
            expired=self._num_expired,
            deleted=self._num_deleted,
            displaced=self._num_displaced,
            refused=self._num_refused,
            write_errors=self._file.num_errors if self._file else 0,
        )

    async def sweep(self) -> int:
        """Forgets every session that has expired; how many. Writes when sessions were used last."""
        num_expired = self._expire()
        if self._file is not None:
            now = self._clock()
            entries = (entry for entries in self._tenants.values() for entry in entries.values())
            used_at = ((now if entry.held else entry.used_at, entry.number) for entry in entries)
            await self.write(used_at=[(self._file_time(at), number) for at, number in used_at if at >= self._swept_at])
            self._swept_at = now
        return num_expired

    async def close(self) -> None:
        """Writes once more when sessions were used last. Nothing may be called afterwards."""
        if self._file is not None:
            with suppress(UnavailableError):
                await self.sweep()
            await self._file.close()

    def finished_turns(self) -> Iterator[FinishedTurn]:
        """Those that the file remembers, oldest first. Raises ConfigError where it is damaged."""
        return self._file.turns() if self._file else iter(())

    async def write(
        self,
        created: SessionRow | None = None,
        longer: Longer | None = None,
        turn: FinishedTurn | None = None,
        used_at: Sequence[tuple[float, int]] = (),
        deleted: int | None = None,
    ) -> None:
        """Writes it to the file, if there is one, with whatever was forgotten meanwhile. Raises UnavailableError."""
        if self._file is None:
            return
        gone = self._gone.copy()
        deleted_too = gone if deleted is None else gone | {deleted}
        now = self._file_time(self._clock())
        await self._file.write(Changes(now, created, longer, turn, used_at, deleted_too))
        self._gone -= gone

    def _file_time(self, at: float) -> float:
        return at - self._file_epoch

    def _expire(self) -> int:
        now = self._clock()
        expired = [
            (tenant, session_id)
            for tenant, entries in self._tenants.items()
            for session_id, entry in entries.items()
            if entry.expires_in(now) <= 0
        ]
        for key in expired:
            self._forget(*key)
        self._num_expired += len(expired)
        return len(expired)

    def _displace_empty(self) -> bool:
        """Makes room; False where every session has tokens or is in use."""
        empty = [
            (entry.used_at, entry.number, tenant, session_id)
            for tenant, entries in self._tenants.items()
            for session_id, entry in entries.items()
            if not entry.held and not entry.history.num_tokens
        ]
        if not empty:
            return False
        _, _, tenant, session_id = min(empty)
        self._forget(tenant, session_id)
        self._num_displaced += 1
        return True

    def _use(self, tenant: str, session_id: str) -> _Entry:
        now = self._clock()
        entry = self._tenants.get(tenant, {}).get(session_id)
        if entry is not None and entry.expires_in(now) <= 0:
            self._forget(tenant, session_id)
            self._num_expired += 1
            entry = None
        if entry is None:
            raise NotFoundError(f"session {session_id!r} is not here (any more); begin a new one")
        entry.used_at = now
        return entry

    def _forget(self, tenant: str, session_id: str) -> None:
        entry = self._tenants[tenant].pop(session_id)
        if self._file is not None:
            self._gone.add(entry.number)
        if not self._tenants[tenant]:
            del self._tenants[tenant]

    @property
    def _num_live(self) -> int:
        return sum(map(len, self._tenants.values()))

    def _is_full(self) -> bool:
        return self._num_live >= self._max_sessions


def _session(tenant: str, session_id: str, entry: _Entry, now: float) -> Session:
    return Session(tenant, session_id, entry.history, entry.ttl_seconds, entry.expires_in(now))
