"""icarus.v1.ModelService."""

from typing import Any

from icarus.errors import InvalidInputError
from icarus.rpc.messages import mode_from_wire, mode_to_wire
from icarus.types import AdapterInfo, Role
from icarus.v1 import model_service_pb2 as pb
from icarus.v1 import model_service_pb2_grpc as pb_grpc
from icarus_gateway.adapters import Adapters
from icarus_gateway.served_model import ServedModel
from icarus_gateway.workers import WorkerTable


class ModelServicer(pb_grpc.ModelServiceServicer):
    def __init__(self, model: ServedModel, workers: WorkerTable, adapters: Adapters):
        self._model = model
        self._workers = workers
        self._adapters = adapters

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        decoders = [worker.worker_id for worker in self._workers.live(Role.DECODE)]
        base = pb.Model(name=self._model.name, is_base=True, worker_ids=decoders)
        adapters = [self._to_wire(info) for _, info in sorted(self._workers.adapters().items())]
        return pb.ListModelsResponse(models=[base, *adapters], context_length=self._model.context_length)

    async def LoadAdapter(self, request: pb.LoadAdapterRequest, context: Any) -> pb.LoadAdapterResponse:
        mode = mode_from_wire(request.mode)
        if mode is None and request.mode != pb.ADAPTER_MODE_UNSPECIFIED:
            raise InvalidInputError(f"mode is {request.mode}; it must be one of AdapterMode")
        info = await self._adapters.load(request.name, request.path, mode, request.worker_ids)
        return pb.LoadAdapterResponse(model=self._to_wire(info))

    async def UnloadAdapter(self, request: pb.UnloadAdapterRequest, context: Any) -> pb.UnloadAdapterResponse:
        await self._adapters.unload(request.name)
        return pb.UnloadAdapterResponse()

    def _to_wire(self, info: AdapterInfo) -> pb.Model:
        having = [worker.worker_id for worker in self._workers.live() if info.name in worker.adapters]
        return pb.Model(name=info.name, mode=mode_to_wire(info.mode), digest=info.digest, worker_ids=having)
