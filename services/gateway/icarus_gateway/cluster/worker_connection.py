"""The way to one worker: its channel, and what is called over it."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc.aio

from icarus import tracing
from icarus.errors import UnavailableError
from icarus.rpc.channel import open_channel
from icarus.rpc.status import error_from_rpc
from icarus.worker.v1 import (
    adapter_service_pb2_grpc,
    block_service_pb2_grpc,
    debug_service_pb2_grpc,
    decode_service_pb2_grpc,
    prefill_service_pb2_grpc,
)


class WorkerConnection:
    """A worker that leaves or is replaced has its connection closed, whoever holds it still: calls under way are
    cancelled, later ones raise UnavailableError.

    The stubs are made here, once: grpc 1.85 crashes the process that makes one over a closed channel.
    """

    def __init__(self, worker_id: str, address: str):
        self._name = f"worker {worker_id}"
        self._channel = open_channel(address)
        self.decode = decode_service_pb2_grpc.DecodeServiceStub(self._channel)
        self.prefill = prefill_service_pb2_grpc.PrefillServiceStub(self._channel)
        self.blocks = block_service_pb2_grpc.BlockServiceStub(self._channel)
        self.adapters = adapter_service_pb2_grpc.AdapterServiceStub(self._channel)
        self.debug = debug_service_pb2_grpc.DebugServiceStub(self._channel)

    async def ask(self, method: Callable[..., Any], request: Any, timeout: float | None = None) -> Any:
        """The answer to a unary call of one of the stubs' methods. Raises what the worker raised."""
        try:
            return await method(request, timeout=timeout, metadata=tracing.outgoing())
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error, self._name) from None
        except grpc.aio.UsageError:
            raise self._closed() from None
        except asyncio.CancelledError:
            if _is_cancelled_itself():
                raise
            raise self._closed() from None

    def open_decode(self) -> Any:
        """A Decode stream."""
        try:
            return self.decode.Decode(metadata=tracing.outgoing())
        except grpc.aio.UsageError:
            raise self._closed() from None

    async def close(self) -> None:
        await self._channel.close(None)

    def _closed(self) -> UnavailableError:
        return UnavailableError(f"{self._name} has left or was replaced")


def _is_cancelled_itself() -> bool:
    """The task that runs, and not only the call that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
