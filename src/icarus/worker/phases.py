"""A test hook: holds turns in a named phase, so that a test can see what is freed when one ends right there."""

import asyncio
from collections.abc import Iterable, Iterator
from enum import StrEnum

from icarus.engine.request import Request

_POLL_SECONDS = 0.01


class TurnPhase(StrEnum):
    """Where a turn can be held. `debug_service.proto` says what each means."""

    QUEUED = "queued"
    RESERVED = "reserved"
    TRANSFERRING = "transferring"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    STREAMING = "streaming"


class PhaseGates:
    """Nothing is held unless a test says so over DebugService, which needs [worker] test_hooks.

    Every thread of a worker asks; single operations on sets need no lock.
    """

    def __init__(self) -> None:
        self._held: set[TurnPhase] = set()
        self._reached: set[TurnPhase] = set()

    def hold(self, phase: TurnPhase) -> None:
        self._reached.discard(phase)
        self._held.add(phase)

    def release(self, phase: TurnPhase) -> None:
        self._held.discard(phase)

    def is_held(self, phase: TurnPhase) -> bool:
        return phase in self._held

    def stops(self, phase: TurnPhase) -> bool:
        """Whether a turn that stands in this phase must stay. Only on behalf of one that does: it counts as reached."""
        if phase not in self._held:
            return False
        self._reached.add(phase)
        return True

    def stops_any(self, phases: Iterable[TurnPhase]) -> bool:
        """As `stops`, of turns in several phases."""
        return bool(self._held) and any(self.stops(phase) for phase in phases)

    async def pass_through(self, phase: TurnPhase) -> None:
        """A turn is in this phase; returns when it may go on."""
        while self.stops(phase):
            await asyncio.sleep(_POLL_SECONDS)

    async def wait_reached(self, phase: TurnPhase) -> None:
        """Returns once a turn stands in a held phase."""
        while phase not in self._reached:
            await asyncio.sleep(_POLL_SECONDS)


def computing_phases(running: Iterable[Request]) -> Iterator[TurnPhase]:
    """Where the requests of the running batch stand between two steps."""
    for request in running:
        if request.num_output > request.num_earlier_output:
            yield TurnPhase.DECODING
        elif request.kv_written_tokens:
            yield TurnPhase.PREFILLING
