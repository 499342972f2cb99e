"""The engine thread: runs commands between steps, steps while there is work."""

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from icarus.cache.changes import BlockChange
from icarus.engine.engine import Engine
from icarus.errors import IcarusError, OverloadedError, UnavailableError

logger = logging.getLogger(__name__)

T = TypeVar("T")
_IDLE_WAIT_SECONDS = 0.1
"""How late an idle engine may notice that a lease has expired."""
_STOP_SECONDS = 10.0


class EngineFailedError(IcarusError):
    """A bug ended the engine thread: the process has nothing left to serve with."""


@dataclass(frozen=True)
class _Command:
    run: Callable[[Engine], Any]
    answer: Future[Any]

    def execute(self, engine: Engine) -> None:
        if not self.answer.set_running_or_notify_cancel():
            return
        try:
            self.answer.set_result(self.run(engine))
        except Exception as error:
            self.answer.set_exception(error)

    def refuse(self, error: IcarusError) -> None:
        if self.answer.set_running_or_notify_cancel():
            self.answer.set_exception(error)


class EngineThread:
    """Owns an Engine. Other threads reach it through `call` and `post` alone.

    While `hold_step` says so, commands run and no step is taken. `ended` completes with the thread: with
    EngineFailedError where a bug or a lost device ended it. Then every turn, and every command before and after, fails
    with UnavailableError, so that gateways take their turns elsewhere.
    """

    def __init__(
        self,
        engine: Engine,
        on_changes: Callable[[int, list[BlockChange]], None],
        max_queued_commands: int = 1024,
        hold_step: Callable[[Engine], bool] = lambda engine: False,
    ):
        self._engine = engine
        self._on_changes = on_changes
        self._max_queued_commands = max_queued_commands
        self._hold_step = hold_step
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._submitting = threading.Lock()
        self._failure: UnavailableError | None = None
        self._stopping = threading.Event()
        self._stepped = False
        """Whether the last round computed something."""
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._last_round = time.monotonic()
        self.ended: Future[None] = Future()
        self.ended.set_running_or_notify_cancel()  # so that no waiter can cancel it

    @property
    def age_seconds(self) -> float:
        """Seconds since the loop last came round: large when a step hangs."""
        return time.monotonic() - self._last_round

    def start(self) -> None:
        self._thread.start()

    def stop(self, seconds: float = _STOP_SECONDS) -> bool:
        """Ends after the step under way. False where that goes on for `seconds` more."""
        self._stopping.set()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def call(self, command: Callable[[Engine], T]) -> Future[T]:
        """Runs `command` on the engine thread between two steps. Raises OverloadedError when too many wait."""
        if self._commands.qsize() >= self._max_queued_commands:
            raise OverloadedError(f"{self._max_queued_commands} commands wait for the engine already")
        return self.post(command)

    def post(self, command: Callable[[Engine], T]) -> Future[T]:
        """As `call`, never refused: for what ends work (abort, settle, release), which an overload must not stop."""
        pending = _Command(command, Future())
        with self._submitting:
            if self._failure is None:
                self._commands.put(pending)
            else:
                pending.refuse(self._failure)
        return pending.answer

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._round()
        except Exception as error:
            logger.critical("the engine thread failed", exc_info=error)
            self._fail(error)
        else:
            self.ended.set_result(None)

    def _round(self) -> None:
        self._last_round = time.monotonic()
        self._run_commands()
        self._engine.expire_leases()
        self._stepped = self._engine.has_work and not self._hold_step(self._engine) and self._engine.step()
        self._publish_changes()

    def _fail(self, error: Exception) -> None:
        """Nobody waits for this engine any longer."""
        failure = UnavailableError("the engine of this worker has failed; the worker ends")
        with self._submitting:
            self._failure = failure
        while not self._commands.empty():
            self._commands.get_nowait().refuse(failure)
        self._engine.fail_all(failure)
        self.ended.set_exception(EngineFailedError(f"the engine thread ended: {type(error).__name__}: {error}"))

    def _run_commands(self) -> None:
        """The commands that wait by now: callers who ask again and again must not hold the next step up. Where nothing
        could be computed, waits a little for one."""
        num_waiting = self._commands.qsize()
        if num_waiting == 0 and not self._stepped:
            with suppress(queue.Empty):
                self._commands.get(timeout=_IDLE_WAIT_SECONDS).execute(self._engine)
        for _ in range(num_waiting):
            self._commands.get_nowait().execute(self._engine)

    def _publish_changes(self) -> None:
        first_sequence, changes = self._engine.pool.changes.take()
        if changes:
            self._on_changes(first_sequence, changes)
