"""The prefill process: the frozen encoder, and private specialists' own prefills."""

from icarus.config import Config
from icarus.rpc.server import Service
from icarus.types import Role
from icarus.worker.process import run_worker
from icarus.worker.v1 import prefill_service_pb2, prefill_service_pb2_grpc
from icarus.worker.worker import Worker
from icarus_prefill.prefill_service import PrefillServicer


async def serve(config: Config) -> None:
    """Serves until SIGTERM or SIGINT. Raises ConfigError before it serves."""
    await run_worker(config, Role.PREFILL, _service)


def _service(worker: Worker) -> Service:
    return Service(
        prefill_service_pb2.DESCRIPTOR.services_by_name["PrefillService"],
        prefill_service_pb2_grpc.add_PrefillServiceServicer_to_server,
        PrefillServicer(worker),
    )
