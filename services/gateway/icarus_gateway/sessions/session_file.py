"""Sessions on disk: one SQLite file, of one gateway, which writes it in a thread of its own."""

import asyncio
import fcntl
import io
import logging
import os
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Self

from google.protobuf.message import DecodeError
from google.protobuf.proto import parse_length_prefixed, serialize_length_prefixed

from icarus.errors import ConfigError, UnavailableError
from icarus.v1 import generation_pb2
from icarus_gateway.sessions.history import History, Place
from icarus_gateway.turns.events import TurnEvent, event_from_wire, event_to_wire
from icarus_gateway.turns.runs import FinishedTurn, TurnKey

log = logging.getLogger(__name__)

_VERSION = 1
# `clock` and every `_at` count the seconds that gateways have run with this file: time spent down does not pass.
_SCHEMA = f"""
BEGIN;
CREATE TABLE meta (model TEXT NOT NULL, vocabulary TEXT NOT NULL, clock REAL NOT NULL);
CREATE TABLE sessions (
    number INTEGER PRIMARY KEY, tenant TEXT NOT NULL, session_id TEXT NOT NULL, ttl_seconds REAL NOT NULL,
    used_at REAL NOT NULL
);
CREATE TABLE pieces (
    session INTEGER NOT NULL, piece INTEGER NOT NULL, num_turns INTEGER NOT NULL, after_messages INTEGER NOT NULL,
    answer_open INTEGER NOT NULL, token_ids BLOB NOT NULL, PRIMARY KEY (session, piece)
) WITHOUT ROWID;
CREATE TABLE turns (
    tenant TEXT NOT NULL, turn_id TEXT NOT NULL, fingerprint BLOB NOT NULL, events BLOB NOT NULL,
    forget_at REAL NOT NULL, PRIMARY KEY (tenant, turn_id)
);
PRAGMA user_version = {_VERSION};
COMMIT;
"""


@dataclass(frozen=True)
class SessionRow:
    """A session without its history."""

    number: int
    tenant: str
    session_id: str
    ttl_seconds: float
    used_at: float


@dataclass(frozen=True)
class Longer:
    """A history whose pieces from number `first_piece` on are new."""

    number: int
    history: History
    first_piece: int = 1


@dataclass(frozen=True)
class Changes:
    """What one transaction writes. Sessions are named by their numbers."""

    clock: float
    created: SessionRow | None = None
    longer: Longer | None = None
    turn: FinishedTurn | None = None
    """The one that made it longer."""
    used_at: Sequence[tuple[float, int]] = ()
    """(when, session)"""
    gone: Collection[int] = ()


class SessionFile:
    """Reads block the caller and belong before the first write; writes do not, and come one after the other."""

    def __init__(self, path: Path, lock: io.IOBase, connection: sqlite3.Connection):
        self.path = path
        self.num_errors = 0
        """Writes that failed."""
        self._lock = lock
        self._connection = connection
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="session-file")

    @classmethod
    def open(cls, path: Path, model: str, vocabulary: str) -> Self:
        """Makes the file, and its folder, where there is none. `~` is the user's home.

        Raises ConfigError for a file that another gateway has, that is another model's (its tokens would mean something
        else), or that is no session file of this release.
        """
        try:
            path = path.expanduser()
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = _locked(path)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # conversations are nobody else's business
            connection = sqlite3.connect(path, check_same_thread=False)
        except (OSError, RuntimeError, sqlite3.Error) as error:  # RuntimeError: nobody has that home
            raise ConfigError(f"[gateway] session_file {path} cannot be opened: {error}") from None
        try:
            _prepare(connection, path, model, vocabulary)
        except BaseException as error:
            connection.close()
            lock.close()
            if isinstance(error, sqlite3.Error):
                raise ConfigError(f"[gateway] session_file {path} cannot be used: {error}") from None
            raise
        return cls(path, lock, connection)

    def clock(self) -> float:
        """At the last write."""
        return self._connection.execute("SELECT clock FROM meta").fetchone()[0]

    def sessions(self) -> Iterator[tuple[SessionRow, History]]:
        """Oldest first. Raises ConfigError where the file is damaged."""
        query = "SELECT session, num_turns, after_messages, answer_open, token_ids FROM pieces ORDER BY session, piece"
        rows = "SELECT number, tenant, session_id, ttl_seconds, used_at FROM sessions ORDER BY number"
        with self._reading():
            pieces = groupby(self._connection.execute(query), key=lambda piece: piece[0])
            histories = {number: History.of_pieces(_places(found)) for number, found in pieces}
            for row in self._connection.execute(rows):
                yield SessionRow(*row), histories.pop(row[0], History())

    def turns(self) -> Iterator[FinishedTurn]:
        """Those that are still remembered, oldest first. Raises ConfigError where the file is damaged."""
        clock = self.clock()
        query = "SELECT tenant, turn_id, fingerprint, events, forget_at FROM turns WHERE forget_at > ? ORDER BY rowid"
        with self._reading():
            for tenant, turn_id, fingerprint, events, forget_at in self._connection.execute(query, (clock,)):
                yield FinishedTurn(TurnKey(tenant, turn_id, fingerprint), tuple(_unpack(events)), forget_at - clock)

    async def write(self, changes: Changes) -> None:
        """All of it or nothing, on the disk when it returns. Raises UnavailableError where nothing was written.

        A cancellation meanwhile is ignored, since what is written is not taken back.
        """
        work = asyncio.get_running_loop().run_in_executor(self._thread, self._write, changes)
        await _settled(work)
        if (error := work.exception()) is None:
            return
        if not isinstance(error, sqlite3.Error):
            raise error
        self.num_errors += 1
        log.error("session file not written", extra={"path": self.path, "reason": str(error)})
        raise UnavailableError(f"the gateway's session file cannot be written: {error}; nothing was changed, try again")

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.close)
        self._thread.shutdown()
        self._lock.close()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, DecodeError) as error:
            raise ConfigError(f"[gateway] session_file {self.path} is damaged: {error}") from None

    def _write(self, changes: Changes) -> None:
        with self._connection as db:
            db.execute("UPDATE meta SET clock = ?", (changes.clock,))
            gone = [(number,) for number in changes.gone]
            db.executemany("DELETE FROM sessions WHERE number = ?", gone)
            db.executemany("DELETE FROM pieces WHERE session = ?", gone)
            db.executemany("UPDATE sessions SET used_at = ? WHERE number = ?", changes.used_at)
            db.execute("DELETE FROM turns WHERE forget_at <= ?", (changes.clock,))
            if (row := changes.created) is not None:
                values = (row.number, row.tenant, row.session_id, row.ttl_seconds, row.used_at)
                db.execute("INSERT INTO sessions VALUES (?, ?, ?, ?, ?)", values)
            if (longer := changes.longer) is not None:
                db.execute("UPDATE sessions SET used_at = ? WHERE number = ?", (changes.clock, longer.number))
                pieces = enumerate(longer.history.pieces(longer.first_piece), longer.first_piece)
                values = ((longer.number, piece, *_columns(place), packed) for piece, (place, packed) in pieces)
                db.executemany("INSERT INTO pieces VALUES (?, ?, ?, ?, ?, ?)", values)
            if (turn := changes.turn) is not None:
                key, forget_at = turn.key, changes.clock + turn.keep_seconds
                values = (key.tenant, key.turn_id, key.fingerprint, _pack(turn.events), forget_at)
                db.execute("INSERT OR REPLACE INTO turns VALUES (?, ?, ?, ?, ?)", values)


def _locked(path: Path) -> io.IOBase:
    """The file's lock, a file beside it, for as long as it is open. Raises ConfigError while another process has it."""
    lock = open(f"{path}.lock", "wb")  # noqa: SIM115
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ConfigError(
            f"[gateway] session_file {path} is another gateway's, which is running; give each a file of its own"
        ) from None
    return lock


def _prepare(connection: sqlite3.Connection, path: Path, model: str, vocabulary: str) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # what a client was told survives a power cut: 4 ms a turn
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == 0 and not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        connection.executescript(_SCHEMA)
    elif version != _VERSION:
        raise ConfigError(
            f"[gateway] session_file {path} has version {version}; this release reads {_VERSION}: name another file"
        )
    with closing(connection.execute("SELECT model, vocabulary FROM meta")) as found:
        made_for = found.fetchone()
    if made_for is None:
        with connection:
            connection.execute("INSERT INTO meta VALUES (?, ?, 0)", (model, vocabulary))
    elif made_for != (model, vocabulary):
        what = f"of model {made_for[0]!r}" if made_for[0] != model else "of another vocabulary"
        raise ConfigError(
            f"[gateway] session_file {path} holds sessions {what}; this gateway serves {model!r}: name another file"
        )


async def _settled(work: asyncio.Future[Any]) -> None:
    """Waits for the end of what cannot be taken back, whoever cancels."""
    while not work.done():
        try:
            await asyncio.wait((work,))
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None:
                task.uncancel()


def _columns(place: Place) -> tuple[int, bool, bool]:
    return place.num_turns, place.after_messages, place.answer_open


def _places(rows: Iterator[tuple[int, int, int, int, bytes]]) -> Iterator[tuple[Place, bytes]]:
    num_tokens = 0
    for _, num_turns, after_messages, answer_open, packed in rows:
        num_tokens += History.num_tokens_in(packed)
        yield Place(num_tokens, num_turns, bool(after_messages), bool(answer_open)), packed


def _pack(events: Sequence[TurnEvent]) -> bytes:
    packed = io.BytesIO()
    for event in events:
        serialize_length_prefixed(event_to_wire(event), packed)
    return packed.getvalue()


def _unpack(packed: bytes) -> Iterator[TurnEvent]:
    source = io.BytesIO(packed)
    while (message := parse_length_prefixed(generation_pb2.TurnEvent, source)) is not None:
        yield event_from_wire(message)
