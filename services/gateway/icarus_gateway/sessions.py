"""Conversations: append-only token ids, one turn at a time."""

import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from icarus.errors import ConflictError, NotFoundError, OverloadedError
from icarus.types import WorkerId


@dataclass(frozen=True)
class BlockMark:
    """Where a turn left its blocks: all of them are known once the worker's changes before `sequence` are."""

    worker_id: WorkerId
    sequence: int


@dataclass(frozen=True)
class History:
    """A session's truth. Never changed in place: a turn builds the next one and it is committed or forgotten."""

    token_ids: tuple[int, ...] = ()
    num_turns: int = 0
    after_messages: bool = False
    """The last thing appended was messages: an answer begins with the generation prompt."""
    answer_open: bool = False
    """The assistant's turn was opened and never closed."""
    mark: BlockMark | None = None
    """Of the last turn."""

    def extended(self, token_ids: tuple[int, ...] | list[int]) -> "History":
        return replace(self, token_ids=(*self.token_ids, *token_ids))


@dataclass(frozen=True)
class Session:
    tenant: str
    session_id: str
    history: History


class HeldSession(Protocol):
    """A session that only its holder changes."""

    history: History

    def commit(self, history: History) -> None:
        """Takes the longer history as the session's. Raises ValueError for one that does not begin with the old."""
        ...


class SessionStore(Protocol):
    """Where sessions are kept. A session is found only under its own tenant: NotFoundError otherwise."""

    def create(self, tenant: str, history: History) -> Session:
        """Raises OverloadedError where there is no room."""
        ...

    def get(self, tenant: str, session_id: str) -> Session: ...

    def delete(self, tenant: str, session_id: str) -> None:
        """Raises ConflictError while a turn is under way."""
        ...

    def hold(self, tenant: str, session_id: str) -> AbstractContextManager[HeldSession]:
        """The sole right to change the session, within a `with`. Raises ConflictError while somebody else has it."""
        ...


class _Entry:
    def __init__(self, history: History):
        self.history = history
        self.held = False

    def commit(self, history: History) -> None:
        if history.token_ids[: len(self.history.token_ids)] != self.history.token_ids:
            raise ValueError("a session's history is append-only")
        self.history = history


class MemorySessionStore:
    """Sessions of one gateway process, in memory. Used from one event loop."""

    def __init__(self, max_sessions: int):
        self._max_sessions = max_sessions
        self._entries: dict[tuple[str, str], _Entry] = {}

    def create(self, tenant: str, history: History) -> Session:
        if len(self._entries) >= self._max_sessions:
            raise OverloadedError(f"the gateway keeps at most {self._max_sessions} sessions; delete some", 10.0)
        session_id = secrets.token_hex(12)
        self._entries[tenant, session_id] = _Entry(history)
        return Session(tenant, session_id, history)

    def get(self, tenant: str, session_id: str) -> Session:
        return Session(tenant, session_id, self._entry(tenant, session_id).history)

    def delete(self, tenant: str, session_id: str) -> None:
        if self._entry(tenant, session_id).held:
            raise ConflictError(f"session {session_id!r} has a turn under way; cancel it or wait for its end")
        del self._entries[tenant, session_id]

    @contextmanager
    def hold(self, tenant: str, session_id: str) -> Iterator[HeldSession]:
        entry = self._entry(tenant, session_id)
        if entry.held:
            raise ConflictError(f"session {session_id!r} has a turn under way; wait for its end")
        entry.held = True
        try:
            yield entry
        finally:
            entry.held = False

    def _entry(self, tenant: str, session_id: str) -> _Entry:
        try:
            return self._entries[tenant, session_id]
        except KeyError:
            raise NotFoundError(f"session {session_id!r} is not here; create one with CreateSession") from None
