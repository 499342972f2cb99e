"""icarus.worker.v1.RegistryService: workers come here."""

import logging
from typing import Any

from icarus.cache.changes import BlockChange
from icarus.errors import InvalidInputError
from icarus.rpc.messages import adapter_from_wire
from icarus.types import AdapterInfo, BlockHash, Role, WorkerId
from icarus.worker.v1 import registry_service_pb2 as pb
from icarus.worker.v1 import registry_service_pb2_grpc as pb_grpc
from icarus_gateway.cluster.block_reports import BlockReports
from icarus_gateway.cluster.worker import Heartbeat, WorkerInfo
from icarus_gateway.cluster.workers import WorkerTable

log = logging.getLogger(__name__)


class RegistryServicer(pb_grpc.RegistryServiceServicer):
    def __init__(self, workers: WorkerTable, reports: BlockReports):
        self._workers = workers
        self._reports = reports

    async def Register(self, request: pb.RegisterRequest, context: Any) -> pb.RegisterResponse:
        info = _info(request)
        adapters = _adapters(request.adapters)
        self._workers.register(info, request.protocol_version, adapters, request.adapters_revision)
        await self._forget_silent()
        log.info(
            "worker registered", extra={"worker": info.worker_id, "role": info.role.value, "address": info.address}
        )
        return pb.RegisterResponse(heartbeat_interval_seconds=self._workers.heartbeat_seconds)

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: Any) -> pb.HeartbeatResponse:
        heartbeat = Heartbeat(
            request.engine_age_seconds,
            request.running_requests + request.waiting_requests,
            request.available_blocks,
            request.draining,
        )
        adapters, revision = _adapters(request.adapters), request.adapters_revision
        self._workers.beat(WorkerId(request.worker_id), request.instance_id, heartbeat, adapters, revision)
        await self._forget_silent()
        return pb.HeartbeatResponse()

    async def ReportBlocks(self, request: pb.ReportBlocksRequest, context: Any) -> pb.ReportBlocksResponse:
        key = (WorkerId(request.worker_id), request.instance_id, request.first_sequence)
        if request.HasField("snapshot"):
            hashes = map(BlockHash, request.snapshot.block_hashes)
            return pb.ReportBlocksResponse(next_sequence=await self._reports.snapshot(*key, hashes))
        changes = (BlockChange(BlockHash(change.block_hash), change.removed) for change in request.changes)
        return pb.ReportBlocksResponse(next_sequence=await self._reports.changes(*key, changes))

    async def Deregister(self, request: pb.DeregisterRequest, context: Any) -> pb.DeregisterResponse:
        worker_id = WorkerId(request.worker_id)
        self._workers.deregister(worker_id, request.instance_id)
        self._reports.index.drop(worker_id)
        await self._workers.close_unused()
        log.info("worker left", extra={"worker": worker_id})
        return pb.DeregisterResponse()

    async def _forget_silent(self) -> None:
        for worker_id in self._workers.forget_silent():
            self._reports.index.drop(worker_id)
            log.warning("worker forgotten", extra={"worker": worker_id})
        await self._workers.close_unused()


def _info(request: pb.RegisterRequest) -> WorkerInfo:
    for name in ("worker_id", "instance_id", "address", "cache_fingerprint"):
        if not getattr(request, name):
            raise InvalidInputError(f"{name} is empty; a worker must give it to register")
    if request.block_size < 1:
        raise InvalidInputError(f"block_size is {request.block_size}; it must be at least 1")
    if request.role not in list(Role):
        raise InvalidInputError(f"role is {request.role!r}; it must be one of {', '.join(Role)}")
    return WorkerInfo(
        worker_id=WorkerId(request.worker_id),
        instance_id=request.instance_id,
        role=Role(request.role),
        address=request.address,
        base_model=request.base_model,
        base_digest=request.base_digest,
        cache_fingerprint=request.cache_fingerprint,
        block_size=request.block_size,
        num_blocks=request.num_blocks,
        context_length=request.context_length,
    )


def _adapters(messages: Any) -> list[AdapterInfo]:
    try:
        return [adapter_from_wire(message) for message in messages]
    except ValueError as error:
        raise InvalidInputError(f"adapters: {error}; the mode is shared or private") from None
