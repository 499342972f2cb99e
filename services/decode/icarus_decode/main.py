"""The decode process: it hosts specialists and generates."""

from icarus.config import Config
from icarus.types import Role
from icarus.worker.process import run_worker
from icarus_decode.decode_service import DecodeServicer


async def serve(config: Config) -> None:
    """Serves until SIGTERM or SIGINT. Raises ConfigError before it serves."""
    stage_timeout_seconds = config.transfer.stage_timeout_seconds
    await run_worker(config, Role.DECODE, lambda worker: DecodeServicer(worker, stage_timeout_seconds))
