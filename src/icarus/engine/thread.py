"""The engine thread: runs commands between steps, steps while there is work."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from icarus.cache.changes import BlockChange
from icarus.engine.engine import Engine
from icarus.errors import OverloadedError

T = TypeVar("T")
_IDLE_WAIT_SECONDS = 0.1
"""How late an idle engine may notice that a lease has expired."""


class EngineThread:
    """Owns an Engine. Other threads reach it through `call` and `post` alone.

    While `hold_step` says so, commands run and no step is taken.
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
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._last_round = time.monotonic()

    @property
    def age_seconds(self) -> float:
        """Seconds since the loop last came round: large when a step hangs."""
        return time.monotonic() - self._last_round

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends after the step under way."""
        self._stopping.set()
        self._thread.join()

    def call(self, command: Callable[[Engine], T]) -> Future[T]:
        """Runs `command` on the engine thread between two steps. Raises OverloadedError when too many wait."""
        if self._commands.qsize() >= self._max_queued_commands:
            raise OverloadedError(f"{self._max_queued_commands} commands wait for the engine already")
        return self.post(command)

    def post(self, command: Callable[[Engine], T]) -> Future[T]:
        """As `call`, never refused: for what ends work (abort, settle, release), which an overload must not stop."""
        future: Future[Any] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(command(self._engine))
            except Exception as error:
                future.set_exception(error)

        self._commands.put(run)
        return future

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._last_round = time.monotonic()
            self._run_commands()
            self._engine.expire_leases()
            if self._may_step():
                self._engine.step()
            self._publish_changes()

    def _run_commands(self) -> None:
        """Every command that waits; where there is nothing to compute, waits a little for one."""
        try:
            if not self._may_step():
                self._commands.get(timeout=_IDLE_WAIT_SECONDS)()
            while True:
                self._commands.get_nowait()()
        except queue.Empty:
            return

    def _may_step(self) -> bool:
        return self._engine.has_work and not self._hold_step(self._engine)

    def _publish_changes(self) -> None:
        first_sequence, changes = self._engine.pool.changes.take()
        if changes:
            self._on_changes(first_sequence, changes)
