"""Everything of the client for asyncio that waits. `connection_sync.py` is its equal for threads."""

import asyncio
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

import grpc.aio
from grpc.aio import EOF  # pyright: ignore[reportAttributeAccessIssue]  # its stubs lack it

from icarus.client.connection import FAREWELL_SECONDS, Stubs, Target, closed_error
from icarus.client.messages import TurnRequest
from icarus.client.results import Delta, TurnResult
from icarus.client.turn import TurnRecord
from icarus.errors import FailedPreconditionError, IcarusError
from icarus.tracing import Metadata
from icarus.v1 import generation_service_pb2 as generation_pb2


class AsyncTurnStream(TurnRecord):
    """Iterates the deltas of a turn. Leaving it early ends the turn: by `async with`, `cancel()`, or dropping it.

    A stream that breaks is resumed where it broke, as the client's `retry` says. Iterating and `result()` raise an
    `icarus.errors` class when the turn fails. Cancelling the task that waits here cancels the turn.
    """

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        while self._error is None and not self._cancelled:
            try:
                response = await self._read()
            except IcarusError as error:
                await self._recover(error)
                continue
            if response is None:
                break
            if (delta := self._take(response.event)) is not None:
                return delta
        raise StopAsyncIteration

    async def _read(self) -> Any:
        """The next message; None at the end."""
        try:
            response = await self._call.read()
        except grpc.aio.AioRpcError as error:
            if self.finish_reason is None:
                raise self._broke(error) from None
            response = EOF
        except asyncio.CancelledError:  # grpc raises it for its own cancelled calls too
            if _task_is_cancelled():
                self.cancel()
                raise
            response = EOF
        if response is not EOF:
            return response
        if self.finish_reason is None:
            raise self._dropped()
        return None

    async def _recover(self, error: IcarusError) -> None:
        """Waits, then asks for the rest of the stream. Raises the error where that would not help."""
        try:
            async with asyncio.timeout(self._delay_after(error)):
                await self._stop.wait()
        except TimeoutError:
            self._resume()
        except asyncio.CancelledError:
            self.cancel()
            raise

    async def result(self) -> TurnResult:
        """Waits for the end of the turn. Raises FailedPreconditionError if it was cancelled."""
        async for _ in self:
            pass
        return self._result()

    async def aclose(self) -> None:
        """`cancel`, and then waits for the gateway's word, a second at most."""
        self.cancel()
        if self._farewell is not None:
            with suppress(grpc.aio.AioRpcError):
                self._take_farewell(await self._farewell)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


class AsyncConnection:
    """One channel, the turns that are open on it, and the farewells that are on their way. Stays in one event loop."""

    def __init__(self, target: Target):
        self.target = target
        self._loop = _running_loop()
        if self._loop is None:
            raise FailedPreconditionError(
                "an AsyncClient is made within a running event loop, such as in the coroutine that asyncio.run is given"
            )
        self._channel = target.open_channel(grpc.aio)
        self.stubs = Stubs(self._channel)
        self._streams: set[weakref.ref[AsyncTurnStream]] = set()
        self._farewells: set[Any] = set()
        self._closed = False

    async def call(
        self, method: Callable[..., Any], request: Any, timeout: float | None, *, repeatable: bool = False
    ) -> Any:
        """The answer. `repeatable`: twice is as good as once."""
        attempts = self.target.attempts("the call to", timeout)
        while True:
            self._check_open()
            try:
                return await method(request, timeout=attempts.seconds_left(), metadata=self.target.metadata)
            except grpc.aio.AioRpcError as rpc_error:
                error = self.target.error_of(rpc_error)
            except asyncio.CancelledError:  # grpc raises it for calls whose channel is closed too
                if not _task_is_cancelled():
                    self._check_open()
                raise
            await asyncio.sleep(attempts.delay_after(error, repeatable))

    def stream(self, method: Callable[..., Any], request: TurnRequest, timeout: float | None) -> AsyncTurnStream:
        """Sends a turn."""
        attempts = self.target.attempts(f"turn {request.turn_id} at", timeout)
        stream = AsyncTurnStream(self, method, request, attempts, asyncio.Event())
        self._streams.add(weakref.ref(stream, self._streams.discard))
        return stream

    def open(self, method: Callable[..., Any], request: TurnRequest, timeout: float | None, more: Metadata) -> Any:
        self._check_open()
        return method(request, timeout=timeout, metadata=(*self.target.metadata, *more))

    def give_up(self, call: Any, turn_id: str) -> Any:
        call.cancel()
        if self._closed:
            return None
        request = generation_pb2.CancelTurnRequest(tenant=self.target.tenant, turn_id=turn_id)
        # A call object and no task that makes one: what the caller's task sends next does not overtake it.
        farewell = self.stubs.generation.CancelTurn(
            request, timeout=FAREWELL_SECONDS, metadata=self.target.metadata, wait_for_ready=True
        )
        self._farewells.add(farewell)
        farewell.add_done_callback(self._farewells.discard)
        return farewell

    def drop(self, let_go: Callable[[], None]) -> None:
        assert self._loop is not None
        if _running_loop() is self._loop:
            let_go()
            return
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(let_go)

    async def close(self) -> None:
        for reference in list(self._streams):
            if (stream := reference()) is not None:
                stream.cancel()
        self._closed = True
        try:
            await asyncio.gather(*(farewell.code() for farewell in self._farewells))
        finally:
            await self._channel.close(None)

    def _check_open(self) -> None:
        if self._closed:
            raise closed_error()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _task_is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
