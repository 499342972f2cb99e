"""The prefill process: the frozen encoder, and private specialists' own prefills."""

from icarus.config import Config
from icarus.types import Role
from icarus.worker.process import run_worker
from icarus_prefill.prefill_service import PrefillServicer


async def serve(config: Config) -> None:
    """Serves until SIGTERM or SIGINT. Raises ConfigError before it serves."""
    await run_worker(config, Role.PREFILL, PrefillServicer)
