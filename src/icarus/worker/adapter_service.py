"""Loads and unloads this worker's adapters."""

import grpc.aio

from icarus.errors import InvalidInputError
from icarus.types import AdapterMode
from icarus.worker.v1 import adapter_service_pb2 as pb
from icarus.worker.v1 import adapter_service_pb2_grpc as pb_grpc
from icarus.worker.worker import Worker


class AdapterServicer(pb_grpc.AdapterServiceServicer):
    def __init__(self, worker: Worker):
        self._worker = worker

    async def LoadAdapter(
        self, request: pb.LoadAdapterRequest, context: grpc.aio.ServicerContext
    ) -> pb.LoadAdapterResponse:
        info = await self._worker.load_adapter(request.name, request.path, _mode(request.mode))
        return pb.LoadAdapterResponse(digest=info.digest, mode=info.mode.value, rank=info.rank)

    async def UnloadAdapter(
        self, request: pb.UnloadAdapterRequest, context: grpc.aio.ServicerContext
    ) -> pb.UnloadAdapterResponse:
        self._worker.adapters.remove(request.name)
        return pb.UnloadAdapterResponse()


def _mode(text: str) -> AdapterMode | None:
    if text and text not in set(AdapterMode):
        raise InvalidInputError(f"adapter mode {text!r} is neither 'shared' nor 'private'")
    return AdapterMode(text) if text else None
