"""The way to one worker: its channel, and what is called over it."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc.aio

from icarus import tracing
from icarus.errors import UnavailableError
from icarus.rpc.channel import open_channel
from icarus.rpc.status import error_from_rpc
from icarus.worker.v1 import adapter_service_pb2 as adapter_pb
from icarus.worker.v1 import (
    adapter_service_pb2_grpc,
    block_service_pb2_grpc,
    debug_service_pb2_grpc,
    decode_service_pb2_grpc,
    prefill_service_pb2_grpc,
)
from icarus.worker.v1 import block_service_pb2 as block_pb
from icarus.worker.v1 import debug_service_pb2 as debug_pb
from icarus.worker.v1 import decode_service_pb2 as decode_pb
from icarus.worker.v1 import prefill_service_pb2 as prefill_pb

DecodeStream = grpc.aio.StreamStreamCall[decode_pb.DecodeRequest, decode_pb.DecodeResponse]


class WorkerConnection:
    """A method for each call that the gateway makes; all raise what the worker raised. A worker that leaves or is
    replaced has its connection closed, whoever holds it still: calls under way are cancelled, later ones raise
    UnavailableError.

    The stubs are made here, once: grpc 1.85 crashes the process that makes one over a closed channel.
    """

    def __init__(self, worker_id: str, address: str):
        self._name = f"worker {worker_id}"
        self._channel = open_channel(address)
        self._decode = decode_service_pb2_grpc.DecodeServiceStub(self._channel)
        self._prefill = prefill_service_pb2_grpc.PrefillServiceStub(self._channel)
        self._blocks = block_service_pb2_grpc.BlockServiceStub(self._channel)
        self._adapters = adapter_service_pb2_grpc.AdapterServiceStub(self._channel)
        self._debug = debug_service_pb2_grpc.DebugServiceStub(self._channel)

    def open_decode(self) -> DecodeStream:
        try:
            return self._decode.Decode(metadata=tracing.outgoing())
        except grpc.aio.UsageError:
            raise self._closed() from None

    async def prefill(self, request: prefill_pb.PrefillRequest, timeout_seconds: float) -> prefill_pb.PrefillResponse:
        return await self._ask(self._prefill.Prefill, request, timeout_seconds)

    async def release_lease(
        self, request: block_pb.ReleaseLeaseRequest, timeout_seconds: float
    ) -> block_pb.ReleaseLeaseResponse:
        return await self._ask(self._blocks.ReleaseLease, request, timeout_seconds)

    async def load_adapter(
        self, request: adapter_pb.LoadAdapterRequest, timeout_seconds: float
    ) -> adapter_pb.LoadAdapterResponse:
        return await self._ask(self._adapters.LoadAdapter, request, timeout_seconds)

    async def unload_adapter(
        self, request: adapter_pb.UnloadAdapterRequest, timeout_seconds: float
    ) -> adapter_pb.UnloadAdapterResponse:
        return await self._ask(self._adapters.UnloadAdapter, request, timeout_seconds)

    async def pin_adapter(
        self, request: adapter_pb.PinAdapterRequest, timeout_seconds: float
    ) -> adapter_pb.PinAdapterResponse:
        return await self._ask(self._adapters.PinAdapter, request, timeout_seconds)

    async def check_integrity(
        self, request: debug_pb.CheckIntegrityRequest, timeout_seconds: float
    ) -> debug_pb.CheckIntegrityResponse:
        return await self._ask(self._debug.CheckIntegrity, request, timeout_seconds)

    async def close(self) -> None:
        await self._channel.close(None)

    async def _ask(self, method: Callable[..., Any], request: Any, timeout_seconds: float) -> Any:
        try:
            return await method(request, timeout=timeout_seconds, metadata=tracing.outgoing())
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error, self._name) from None
        except grpc.aio.UsageError:
            raise self._closed() from None
        except asyncio.CancelledError:
            if _is_cancelled_itself():
                raise
            raise self._closed() from None

    def _closed(self) -> UnavailableError:
        return UnavailableError(f"{self._name} has left or was replaced")


def _is_cancelled_itself() -> bool:
    """The task that runs, and not only the call that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
