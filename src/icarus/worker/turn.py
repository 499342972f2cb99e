"""One turn's way through a worker: submit, land what others have, hear the engine; abort unless it ended."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Future
from types import TracebackType

from icarus.engine.engine import Engine
from icarus.engine.events import Admitted, Failed, Finished, Prefilled
from icarus.engine.request import Landing, Request
from icarus.engine.thread import EngineThread
from icarus.errors import IcarusError
from icarus.types import BlockId, BlockSource, Grant
from icarus.worker.event_queue import EventQueue, TurnEvent
from icarus.worker.fetch import BlockFetch, WantedBlocks
from icarus.worker.fetch_record import UnsettledReadError


class WorkerTurn:
    """An async context: on leaving it by an exception or before the turn has ended, the engine forgets the turn and
    frees its blocks (and those that a prefill has just leased to a caller that left), except blocks under a posted
    read, which stay quarantined until it settles."""

    def __init__(
        self,
        engine: EngineThread,
        request: Request,
        events: EventQueue,
        fetch: BlockFetch,
        sources: Sequence[BlockSource],
        on_admitted: Callable[[float], None],
    ):
        """`sources`: who may have a prefix of the prompt. `on_admitted` hears how many seconds the request waited for
        room."""
        self._engine = engine
        self._request = request
        self._events = events
        self._sources = sources
        self._on_admitted = on_admitted
        self._ended = False
        self.fetch = fetch

    async def __aenter__(self) -> "WorkerTurn":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._ended or kind is not None:
            request_id = self._request.request_id
            self._post_with_unsettled(lambda engine, unsettled: engine.abort(request_id, unsettled))

    async def submit(self) -> Admitted:
        """Queues the request and waits for room. Raises OverloadedError, InvalidInputError."""
        arrived = time.monotonic()
        await asyncio.wrap_future(self._engine.call(lambda engine: engine.submit(self._request)))
        event = await self._next()
        assert isinstance(event, Admitted), event
        self._on_admitted(time.monotonic() - arrived)
        return event

    async def land_from_sources(self, admitted: Admitted) -> None:
        """Reads what other workers have cached, then lets the engine compute the rest."""
        await self._land(lambda: self.fetch.from_sources(self._wanted(admitted), self._sources))

    async def land_from_grant(self, admitted: Admitted, address: str, grant: Grant, num_cached_tokens: int) -> None:
        """Reads what a prefill worker staged, then lets the engine compute the rest."""
        await self._land(lambda: self.fetch.from_grant(self._wanted(admitted), address, grant, num_cached_tokens))

    async def land_nothing(self) -> None:
        """Lets the engine compute everything that is not local."""
        await self._call(lambda engine: engine.land(self._request.request_id, Landing()))

    async def finish(self) -> None:
        """Ends the turn normally, now."""
        await self._call(lambda engine: engine.finish(self._request.request_id))

    async def events(self) -> AsyncIterator[TurnEvent]:
        """What the engine says, up to and including the turn's end. Raises what the turn failed with."""
        while not self._ended:
            yield await self._next()

    async def _next(self) -> TurnEvent:
        event = await self._events.get()
        self._ended = isinstance(event, Finished | Prefilled | Failed)
        if isinstance(event, Failed):
            raise (
                event.error if isinstance(event.error, IcarusError) else IcarusError("the step failed")
            ) from event.error
        return event

    def _wanted(self, admitted: Admitted) -> WantedBlocks:
        first, last = admitted.num_local_blocks, len(admitted.block_hashes)
        return WantedBlocks(
            first, admitted.block_hashes[first:], admitted.block_ids[first:last], self._request.block_size
        )

    async def _land(self, read: Callable[[], Awaitable[Landing]]) -> None:
        try:
            landing = await read()
        except UnsettledReadError:
            await self._abandon_read()
            return
        await self._call(lambda engine: engine.land(self._request.request_id, landing))

    async def _abandon_read(self) -> None:
        request_id = self._request.request_id
        posted = self._post_with_unsettled(lambda engine, unsettled: engine.abandon_read(request_id, unsettled))
        await asyncio.shield(asyncio.wrap_future(posted))  # a turn that is cancelled here must not take it back

    def _post_with_unsettled(self, command: Callable[[Engine, Sequence[BlockId]], None]) -> Future[None]:
        """Posts a command that quarantines what a read under way may still write to, and, once a read, its settling."""
        read = self.fetch.take_unsettled()
        posted = self._engine.post(lambda engine: command(engine, read.blocks if read else ()))
        if read:
            read.settled.add_done_callback(lambda _: self._engine.post(lambda engine: engine.settle(read.blocks)))
        return posted

    async def _call(self, command: Callable[[Engine], None]) -> None:
        await asyncio.wrap_future(self._engine.post(command))
