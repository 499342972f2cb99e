"""Everything of the client for threads that waits. `connection_aio.py` is its equal for asyncio."""

import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self, cast

import grpc

from icarus.client.connection import FAREWELL_SECONDS, Stubs, Target, closed_error
from icarus.client.messages import TurnRequest
from icarus.client.reaper import Reaper
from icarus.client.results import Delta, TurnResult
from icarus.client.turn import TurnRecord
from icarus.errors import IcarusError
from icarus.tracing import Metadata
from icarus.v1 import generation_service_pb2 as generation_pb2


class TurnStream(TurnRecord):
    """Iterates the deltas of a turn. Leaving it early ends the turn: by `with`, `cancel()`, or dropping it.

    A stream that breaks is resumed where it broke, as the client's `retry` says. Iterating and `result()` raise an
    `icarus.errors` class when the turn fails.
    """

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Delta:
        while self._error is None and not self._cancelled:
            try:
                response = self._read()
            except IcarusError as error:
                self._recover(error)
                continue
            if response is None:
                break
            if (delta := self._take(response.event)) is not None:
                return delta
        raise StopIteration

    def _read(self) -> Any:
        """The next message; None at the end."""
        try:
            response = next(self._call, None)
        except grpc.RpcError as error:
            if self.finish_reason is None:
                raise self._broke(error) from None
            response = None
        if response is None and self.finish_reason is None:
            raise self._dropped()
        return response

    def _recover(self, error: IcarusError) -> None:
        """Waits, then asks for the rest of the stream. Raises the error where that would not help."""
        if not self._stop.wait(self._delay_after(error)):
            self._resume()

    def result(self) -> TurnResult:
        """Waits for the end of the turn. Raises FailedPreconditionError if it was cancelled."""
        for _ in self:
            pass
        return self._result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.cancel()
        if self._farewell is not None:
            with suppress(grpc.RpcError, grpc.FutureCancelledError):
                self._take_farewell(self._farewell.result())


class Connection:
    """One channel, the turns that are open on it, and the farewells that are on their way."""

    def __init__(self, target: Target):
        self.target = target
        self._channel = target.open_channel(grpc)
        self.stubs = Stubs(self._channel)
        self._reaper = Reaper()
        self._streams: set[weakref.ref[TurnStream]] = set()
        self._farewells: set[Any] = set()
        self._closed = False

    def call(self, method: Callable[..., Any], request: Any, timeout: float | None, *, repeatable: bool = False) -> Any:
        """The answer. `repeatable`: twice is as good as once."""
        attempts = self.target.attempts("the call to", timeout)
        while True:
            self._check_open()
            try:
                return method(request, timeout=attempts.seconds_left(), metadata=self.target.metadata)
            except grpc.RpcError as rpc_error:
                error = self.target.error_of(cast(Any, rpc_error))
            time.sleep(attempts.delay_after(error, repeatable))

    def stream(self, method: Callable[..., Any], request: TurnRequest, timeout: float | None) -> TurnStream:
        """Sends a turn."""
        attempts = self.target.attempts(f"turn {request.turn_id} at", timeout)
        stream = TurnStream(self, method, request, attempts, threading.Event())
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
        farewell = self.stubs.generation.CancelTurn.future(
            request, timeout=FAREWELL_SECONDS, metadata=self.target.metadata, wait_for_ready=True
        )
        self._farewells.add(farewell)
        farewell.add_done_callback(self._farewells.discard)
        return farewell

    def drop(self, let_go: Callable[[], None]) -> None:
        self._reaper.put(let_go)

    def close(self) -> None:
        for reference in list(self._streams):
            if (stream := reference()) is not None:
                stream.cancel()
        self._reaper.close()
        self._closed = True
        try:
            for farewell in list(self._farewells):
                farewell.exception()
        finally:
            self._channel.close()

    def _check_open(self) -> None:
        if self._closed:
            raise closed_error()
