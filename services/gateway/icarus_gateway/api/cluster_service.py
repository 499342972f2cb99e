"""icarus.v1.ClusterService."""

import asyncio
import logging
from typing import Any

from icarus.errors import DeadlineError, UnavailableError
from icarus.v1 import cluster_service_pb2 as pb
from icarus.v1 import cluster_service_pb2_grpc as pb_grpc
from icarus.worker.v1 import debug_service_pb2 as debug_pb
from icarus_gateway.cluster.worker import Worker
from icarus_gateway.cluster.workers import WorkerTable

log = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 5.0
_FIELDS = (
    "total_blocks",
    "free_blocks",
    "cached_blocks",
    "used_blocks",
    "quarantined_blocks",
    "block_bytes",
    "kv_written_tokens",
    "transfer_reads",
    "transfer_bytes",
    "running_requests",
    "waiting_requests",
    "evicted_blocks",
    "preemptions",
)


class ClusterServicer(pb_grpc.ClusterServiceServicer):
    def __init__(self, workers: WorkerTable):
        self._workers = workers

    async def GetCluster(self, request: pb.GetClusterRequest, context: Any) -> pb.GetClusterResponse:
        workers = self._workers.live()
        answers = [answer for answer in await asyncio.gather(*map(_ask, workers)) if answer is not None]
        answered = {answer.worker_id for answer in answers}
        return pb.GetClusterResponse(
            workers=answers,
            block_size=workers[0].info.block_size if workers else 0,
            left_out=[self._left_out(worker) for worker in self._workers.known() if worker.worker_id not in answered],
        )

    def _left_out(self, worker: Worker) -> pb.LeftOutWorker:
        return pb.LeftOutWorker(
            worker_id=worker.worker_id,
            role=worker.info.role.value,
            address=worker.info.address,
            silent_seconds=self._workers.silent_seconds(worker),
            draining=self._workers.is_draining(worker),
        )


async def _ask(worker: Worker) -> pb.Worker | None:
    request = debug_pb.CheckIntegrityRequest(skip_check=True)
    try:
        answer = await worker.connection.check_integrity(request, _TIMEOUT_SECONDS)
    except (UnavailableError, DeadlineError) as error:
        log.warning("worker did not answer", extra={"worker": worker.worker_id, "reason": str(error)})
        return None
    return pb.Worker(
        worker_id=worker.worker_id,
        role=worker.info.role.value,
        address=worker.info.address,
        **{name: getattr(answer, name) for name in _FIELDS},
    )
