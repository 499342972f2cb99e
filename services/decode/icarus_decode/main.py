"""The decode process: it hosts specialists and generates."""

from icarus.config import Config
from icarus.rpc.server import Service
from icarus.types import Role
from icarus.worker.process import run_worker
from icarus.worker.v1 import decode_service_pb2, decode_service_pb2_grpc
from icarus.worker.worker import Worker
from icarus_decode.decode_service import DecodeServicer


async def serve(config: Config) -> None:
    """Serves until SIGTERM or SIGINT. Raises ConfigError before it serves."""
    await run_worker(config, Role.DECODE, _service)


def _service(worker: Worker) -> Service:
    return Service(
        decode_service_pb2.DESCRIPTOR.services_by_name["DecodeService"],
        decode_service_pb2_grpc.add_DecodeServiceServicer_to_server,
        DecodeServicer(worker),
    )
