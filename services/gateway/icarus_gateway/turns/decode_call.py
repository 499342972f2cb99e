"""One Decode stream to one worker."""

import asyncio
from types import TracebackType
from typing import Any

import grpc.aio

from icarus.errors import IcarusError, UnavailableError
from icarus.rpc.status import error_from_rpc
from icarus.worker.v1 import decode_service_pb2 as pb
from icarus_gateway.cluster.worker import Worker
from icarus_gateway.cluster.workers import WorkerTable

_LINGER_SECONDS = 1.0


class DecodeCall:
    """Sends and reads messages of one turn. Leaving the context ends the call: by cancelling it, unless the turn has
    ended."""

    def __init__(self, workers: WorkerTable, worker: Worker):
        """Raises UnavailableError where the worker's connection is closed."""
        self._call = worker.connection.open_decode()
        self._workers = workers
        self._worker = worker
        self._name = f"worker {worker.worker_id}"
        self._next: asyncio.Future[Any] | None = None
        self._is_broken = False

    async def __aenter__(self) -> "DecodeCall":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call.cancel()
        if self._next is not None:
            self._next.add_done_callback(_ignore)

    async def send(self, request: pb.DecodeRequest) -> None:
        """Raises UnavailableError where the worker is lost. A stream that is broken already says so at the next `read`,
        with its status."""
        writing = asyncio.ensure_future(self._call.write(request))
        try:
            await self._workers.wait_on(self._worker, writing)
            self._require_not_closed(writing)
            writing.result()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            self._is_broken = True
        finally:
            writing.cancel()
            writing.add_done_callback(_ignore)

    async def read(self) -> pb.DecodeResponse:
        """The next message. Raises the worker's error, or UnavailableError where the worker is lost."""
        reading = await self.wait_readable()
        self._next = None
        return self._message(reading)

    async def wait_readable(self) -> "asyncio.Future[Any]":
        """Returns once `read` will not block. May be cancelled without harm to the stream."""
        reading = self._next = self._next or asyncio.ensure_future(self._call.read())
        await self._workers.wait_on(self._worker, reading)
        return reading

    async def close(self) -> None:
        """After the turn's end: lets the worker's side return by itself."""
        ending = self._next = asyncio.ensure_future(self._end())
        await asyncio.wait((ending,), timeout=_LINGER_SECONDS)

    async def _end(self) -> None:
        await self._call.done_writing()
        await self._call.read()

    def _message(self, reading: "asyncio.Future[Any]") -> pb.DecodeResponse:
        self._require_not_closed(reading)
        try:
            message = reading.result()
        except grpc.aio.AioRpcError as error:
            if self._is_broken and error.code() is grpc.StatusCode.INTERNAL:  # grpc's own, for the write that failed
                raise UnavailableError(f"{self._name} has ended the turn's stream") from None
            raise error_from_rpc(error, self._name) from None
        if not isinstance(message, pb.DecodeResponse):  # EOF
            raise IcarusError(f"{self._name} ended the turn's stream without finishing the turn")
        return message

    def _require_not_closed(self, done: "asyncio.Future[Any]") -> None:
        """grpc cancels what waits on a channel that is closed. Raises UnavailableError."""
        if done.cancelled():
            raise UnavailableError(f"{self._name} has left or was replaced")


def _ignore(waiting: "asyncio.Future[Any]") -> None:
    """The call was cancelled on purpose."""
    if not waiting.cancelled():
        waiting.exception()
