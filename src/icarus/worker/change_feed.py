"""Carries the pool's changes from the engine thread to every gateway link."""

import asyncio
from collections.abc import Callable, Sequence

from icarus.cache.changes import BlockChange

Listener = Callable[[int, Sequence[BlockChange]], None]
"""Hears (number of the first change, the changes)."""


class ChangeFeed:
    """Made and listened to on the event loop, published to from the engine thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def publish_threadsafe(self, first_sequence: int, changes: Sequence[BlockChange]) -> None:
        self._loop.call_soon_threadsafe(self._publish, first_sequence, changes)

    def _publish(self, first_sequence: int, changes: Sequence[BlockChange]) -> None:
        for listener in self._listeners:
            listener(first_sequence, changes)
