"""Where conversations are kept: one turn at a time, forgotten after some time without use."""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from icarus.errors import ConfigError, ConflictError, InvalidInputError, NotFoundError, OverloadedError
from icarus_gateway.sessions.history import History

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


@dataclass(frozen=True)
class SessionPage:
    """Sessions, oldest first. `next_after` is where the next page begins; None after the last."""

    sessions: tuple[Session, ...]
    next_after: int | None


class HeldSession(Protocol):
    """A session that only its holder changes."""

    history: History

    def commit(self, history: History) -> None:
        """Takes the longer history as the session's. Raises ValueError for one that does not begin with the old."""
        ...


class SessionStore(Protocol):
    """Where sessions are kept. A session is found only under its own tenant, and until it expires: NotFoundError.

    Every call that names a session keeps it alive for its ttl from then on, and holding it for as long as it is held.
    """

    def create(self, tenant: str, history: History, ttl_seconds: float | None = None) -> Session:
        """Where there is no room, the session without tokens that was not used for longest makes room.

        Raises OverloadedError where there is none either, InvalidInputError for a ttl beyond the store's own.
        """
        ...

    def get(self, tenant: str, session_id: str) -> Session: ...

    def list(self, tenant: str, after: int, limit: int) -> SessionPage:
        """At most `limit` sessions of those that are younger than number `after`. Keeps none of them alive."""
        ...

    def delete(self, tenant: str, session_id: str) -> None:
        """Raises ConflictError while a turn is under way."""
        ...

    def hold(self, tenant: str, session_id: str) -> AbstractContextManager[HeldSession]:
        """The sole right to change the session, within a `with`. Raises ConflictError while somebody else has it."""
        ...

    def sweep(self) -> int:
        """Forgets every session that has expired; how many."""
        ...

    def counts(self) -> SessionCounts: ...


class _Entry:
    def __init__(self, number: int, history: History, ttl_seconds: float, now: float):
        self.number = number
        """Sessions are numbered as they are created."""
        self.history = history
        self.ttl_seconds = ttl_seconds
        self.used_at = now
        self.held = False

    def commit(self, history: History) -> None:
        if not history.starts_with(self.history):
            raise ValueError("a session's history is append-only")
        self.history = history

    def expires_in(self, now: float) -> float:
        return self.ttl_seconds if self.held else self.ttl_seconds - (now - self.used_at)


class MemorySessionStore:
    """Sessions of one gateway process, in memory. Used from one event loop."""

    def __init__(
        self, max_sessions: int, ttl_seconds: float = DAY_SECONDS, clock: Callable[[], float] = time.monotonic
    ):
        """Raises ConfigError where `ttl_seconds` is not positive."""
        if not ttl_seconds > 0:
            raise ConfigError(f"[gateway] session_ttl_seconds is {ttl_seconds}; it must be above 0")
        self._max_sessions = max_sessions
        self._ttl_seconds = ttl_seconds
        self._clock = clock
        self._num_created = self._num_expired = self._num_deleted = self._num_displaced = self._num_refused = 0
        self._tenants: dict[str, dict[str, _Entry]] = {}
        """Each tenant's sessions, oldest first."""

    def create(self, tenant: str, history: History, ttl_seconds: float | None = None) -> Session:
        ttl = self._ttl_seconds if ttl_seconds is None else ttl_seconds
        if not 0 < ttl <= self._ttl_seconds:
            raise InvalidInputError(f"ttl_seconds is {ttl}; it must be above 0 and at most {self._ttl_seconds}")
        if self._is_full() and (self.sweep() == 0 or self._is_full()) and not self._displace_empty():
            self._num_refused += 1
            raise OverloadedError(f"the gateway keeps at most {self._max_sessions} sessions; delete some", 10.0)
        session_id = secrets.token_hex(12)
        self._num_created += 1
        entry = _Entry(self._num_created, history, ttl, self._clock())
        self._tenants.setdefault(tenant, {})[session_id] = entry
        return _session(tenant, session_id, entry, entry.used_at)

    def get(self, tenant: str, session_id: str) -> Session:
        entry = self._use(tenant, session_id)
        return _session(tenant, session_id, entry, entry.used_at)

    def list(self, tenant: str, after: int, limit: int) -> SessionPage:
        now = self._clock()
        entries = self._tenants.get(tenant, {}).items()
        found = [(key, entry) for key, entry in entries if entry.number > after and entry.expires_in(now) > 0]
        page = found[:limit]
        sessions = tuple(_session(tenant, key, entry, now) for key, entry in page)
        return SessionPage(sessions, page[-1][1].number if len(found) > len(page) else None)

    def delete(self, tenant: str, session_id: str) -> None:
        if self._use(tenant, session_id).held:
            raise ConflictError(f"session {session_id!r} has a turn under way; cancel it or wait for its end")
        self._forget(tenant, session_id)
        self._num_deleted += 1

    @contextmanager
    def hold(self, tenant: str, session_id: str) -> Iterator[HeldSession]:
        entry = self._use(tenant, session_id)
        if entry.held:
            raise ConflictError(f"session {session_id!r} has a turn under way; wait for its end")
        entry.held = True
        try:
            yield entry
        finally:
            entry.held = False
            entry.used_at = self._clock()

    def sweep(self) -> int:
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

    def counts(self) -> SessionCounts:
        return SessionCounts(
            live=self._num_live,
            limit=self._max_sessions,
            created=self._num_created,
            expired=self._num_expired,
            deleted=self._num_deleted,
            displaced=self._num_displaced,
            refused=self._num_refused,
        )

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
            raise NotFoundError(f"session {session_id!r} is not here (any more); create one with CreateSession")
        entry.used_at = now
        return entry

    def _forget(self, tenant: str, session_id: str) -> None:
        del self._tenants[tenant][session_id]
        if not self._tenants[tenant]:
            del self._tenants[tenant]

    @property
    def _num_live(self) -> int:
        return sum(map(len, self._tenants.values()))

    def _is_full(self) -> bool:
        return self._num_live >= self._max_sessions


def _session(tenant: str, session_id: str, entry: _Entry, now: float) -> Session:
    return Session(tenant, session_id, entry.history, entry.ttl_seconds, entry.expires_in(now))
