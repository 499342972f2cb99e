"""Loads, pins and unloads this worker's adapters."""

import grpc.aio

from icarus.errors import InvalidInputError
from icarus.types import AdapterMode
from icarus.worker.adapter_host import AdapterHost
from icarus.worker.v1 import adapter_service_pb2 as pb
from icarus.worker.v1 import adapter_service_pb2_grpc as pb_grpc


class AdapterServicer(pb_grpc.AdapterServiceServicer):
    def __init__(self, adapters: AdapterHost):
        self._adapters = adapters

    async def LoadAdapter(
        self, request: pb.LoadAdapterRequest, context: grpc.aio.ServicerContext
    ) -> pb.LoadAdapterResponse:
        info = await self._adapters.load(request.name, request.path, _mode(request.mode), request.replace, request.pin)
        return pb.LoadAdapterResponse(
            digest=info.digest, mode=info.mode.value, rank=info.rank, adapters_revision=self._adapters.revision
        )

    async def PinAdapter(
        self, request: pb.PinAdapterRequest, context: grpc.aio.ServicerContext
    ) -> pb.PinAdapterResponse:
        await self._adapters.pin(request.name, request.pinned)
        return pb.PinAdapterResponse(adapters_revision=self._adapters.revision)

    async def UnloadAdapter(
        self, request: pb.UnloadAdapterRequest, context: grpc.aio.ServicerContext
    ) -> pb.UnloadAdapterResponse:
        self._adapters.unload(request.name)
        return pb.UnloadAdapterResponse(adapters_revision=self._adapters.revision)


def _mode(text: str) -> AdapterMode | None:
    if text and text not in set(AdapterMode):
        raise InvalidInputError(f"adapter mode {text!r} is neither 'shared' nor 'private'")
    return AdapterMode(text) if text else None
