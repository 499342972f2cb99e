"""From the engine's thread to the event loop."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from icarus.engine.events import Admitted, EngineEvent, Failed, Finished, Prefilled, PromptRead, Sampled


@dataclass(frozen=True)
class Tokens:
    """New tokens, in order."""

    sampled: Sequence[Sampled]


TurnEvent = Admitted | PromptRead | Tokens | Finished | Prefilled | Failed


class EventQueue:
    """Carries an engine's events. Tokens come `min_tokens` at a time: the first at once, and what is left with whatever
    follows them. Made on the event loop."""

    def __init__(self, min_tokens: int):
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[TurnEvent] = asyncio.Queue()
        self._min_tokens = min_tokens
        self._held: list[Sampled] = []
        self._num_wanted = 1

    def put(self, event: EngineEvent) -> None:
        """Called on the engine thread."""
        if isinstance(event, Sampled):
            self._held.append(event)
            if len(self._held) >= self._num_wanted:
                self._num_wanted = self._min_tokens
                self._deliver(self._take_held())
        else:
            self._deliver([*self._take_held(), event])

    async def get(self) -> TurnEvent:
        return await self._events.get()

    def _take_held(self) -> list[TurnEvent]:
        held, self._held = self._held, []
        return [Tokens(held)] if held else []

    def _deliver(self, events: Sequence[TurnEvent]) -> None:
        """In one call: to wake the event loop costs more than all else here."""
        self._loop.call_soon_threadsafe(self._put_all, events)

    def _put_all(self, events: Sequence[TurnEvent]) -> None:
        for event in events:
            self._events.put_nowait(event)
