"""Who holds a session, and waiting for one that is on its way out."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from icarus_gateway.sessions.store import HeldSession, SessionStore

_HEARD_OF_SECONDS = 0.3
"""A caller that cancels, or whose deadline has passed, may be back before the gateway hears of it."""


class SessionHolders:
    """Holds sessions of a store for tasks."""

    def __init__(self, store: SessionStore):
        self._store = store
        self._tasks: dict[tuple[str, str], asyncio.Task[object]] = {}

    async def settle(self, tenant: str, session_id: str) -> None:
        """Waits for the end of a turn that is being cancelled, or will be in a moment. Others are not waited for."""
        key = (tenant, session_id)
        while (task := self._tasks.get(key)) is not None:
            await asyncio.wait((task,), timeout=None if task.cancelling() else _HEARD_OF_SECONDS)
            if self._tasks.get(key) is task and not task.cancelling():
                return

    @contextmanager
    def hold(self, tenant: str, session_id: str) -> Iterator[HeldSession]:
        """`SessionStore.hold` for the running task, to be called right after `settle`."""
        with self._store.hold(tenant, session_id) as session:
            task = asyncio.current_task()
            assert task is not None
            self._tasks[tenant, session_id] = task
            try:
                yield session
            finally:
                del self._tasks[tenant, session_id]
