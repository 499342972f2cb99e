"""icarus.v1.ModelService."""

from typing import Any

from icarus.errors import InvalidInputError
from icarus.rpc.messages import mode_from_wire, mode_to_wire
from icarus.text.served_model import ServedModel
from icarus.types import AdapterInfo, Role
from icarus.v1 import model_service_pb2 as pb
from icarus.v1 import model_service_pb2_grpc as pb_grpc
from icarus_gateway.cluster.adapters import Adapters
from icarus_gateway.cluster.workers import WorkerTable


class ModelServicer(pb_grpc.ModelServiceServicer):
    def __init__(self, model: ServedModel, workers: WorkerTable, adapters: Adapters):
        self._model = model
        self._workers = workers
        self._adapters = adapters

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        decoders = [worker.worker_id for worker in self._workers.live(Role.DECODE)]
        base = pb.Model(name=self._model.name, is_base=True, worker_ids=decoders, resident_worker_ids=decoders)
        return pb.ListModelsResponse(models=[base, *self._list_adapters()], context_length=self._model.context_length)

    async def LoadAdapter(self, request: pb.LoadAdapterRequest, context: Any) -> pb.LoadAdapterResponse:
        mode = mode_from_wire(request.mode)
        if mode is None and request.mode != pb.ADAPTER_MODE_UNSPECIFIED:
            raise InvalidInputError(f"mode is {request.mode}; it must be one of AdapterMode")
        info = await self._adapters.load(
            request.name, request.path, mode, request.worker_ids, replacing=request.replace, pin=request.pin
        )
        return pb.LoadAdapterResponse(model=self._to_wire(info))

    async def PinAdapter(self, request: pb.PinAdapterRequest, context: Any) -> pb.PinAdapterResponse:
        await self._adapters.pin(request.name, request.pinned)
        return pb.PinAdapterResponse()

    async def UnloadAdapter(self, request: pb.UnloadAdapterRequest, context: Any) -> pb.UnloadAdapterResponse:
        await self._adapters.unload(request.name)
        return pb.UnloadAdapterResponse()

    def _list_adapters(self) -> list[pb.Model]:
        """By name. A name that stands for different weights on two workers is listed twice."""
        infos = [info for worker in self._workers.live() for info in worker.adapters.values()]
        distinct = {(info.name, info.digest, info.mode): info for info in infos}
        return [self._to_wire(distinct[key]) for key in sorted(distinct)]

    def _to_wire(self, info: AdapterInfo) -> pb.Model:
        """The adapter and every worker that has these very weights under its name."""
        having = {
            worker.worker_id: held
            for worker in self._workers.live()
            if (held := worker.adapters.get(info.name)) and (held.digest, held.mode) == (info.digest, info.mode)
        }
        return pb.Model(
            name=info.name,
            mode=mode_to_wire(info.mode),
            digest=info.digest,
            worker_ids=having,
            pinned=any(held.pinned for held in having.values()),
            resident_worker_ids=[worker_id for worker_id, held in having.items() if held.resident],
        )
