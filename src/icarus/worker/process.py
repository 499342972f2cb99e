"""Runs one worker process from its settings to its last answer."""

import asyncio
import logging
import os
import secrets
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from prometheus_client import CollectorRegistry

from icarus.config import Config, WorkerSection
from icarus.errors import ConfigError
from icarus.rpc.loop_collector import LoopCollector
from icarus.rpc.metrics import MetricsInterceptor, RpcMetrics
from icarus.rpc.metrics_server import MetricsServer, make_registry
from icarus.rpc.server import Server, Service, make_server, serve_until_signal
from icarus.types import Role, WorkerId
from icarus.worker.adapter_service import AdapterServicer
from icarus.worker.block_service import BlockServicer
from icarus.worker.build import build_worker
from icarus.worker.change_feed import ChangeFeed
from icarus.worker.debug_service import DebugServicer
from icarus.worker.gateway_link import GatewayLink
from icarus.worker.metrics import WorkerMetrics
from icarus.worker.state_metrics import WorkerState
from icarus.worker.watch import watch
from icarus.worker.worker import Worker

logger = logging.getLogger(__name__)

_EVERYWHERE = ("0.0.0.0", "[::]")


async def run_worker(config: Config, role: Role, make_servicer: Callable[[Worker], Any]) -> None:
    """Loads, serves until SIGTERM or SIGINT, then drains. `make_servicer` makes what this role adds to what all workers
    serve.

    Raises ConfigError before it serves, and what `watch` raises: the worker cannot go on, and has drained.
    """
    _require_reachable(config.worker)
    registry = make_registry()
    with MetricsServer(config.metrics.address, registry):
        await _run(config, role, make_servicer, registry)


async def _run(config: Config, role: Role, make_servicer: Callable[[Worker], Any], registry: CollectorRegistry) -> None:
    changes = ChangeFeed()
    worker = await build_worker(config, role, _worker_id(config, role), changes, WorkerMetrics.register(registry))
    registry.register(LoopCollector(WorkerState(worker).read))
    counting = MetricsInterceptor(RpcMetrics.register(registry))
    debug = DebugServicer(worker, config.worker.test_hooks)
    servicers = make_servicer(worker), BlockServicer(worker), AdapterServicer(worker.adapters), debug
    services = [*map(Service.of, servicers)]
    server = make_server(config.worker.address, services, [counting], setting="[worker] address")
    await worker.start()
    try:
        await _serve(config, worker, changes, server)
    finally:
        if not await worker.stop():
            _end_without_threads(worker.hangs or sys.exception() is not None)


def _end_without_threads(failed: bool) -> NoReturn:
    """A thread is in a call that nothing interrupts; the interpreter's own exit might wait for it, or crash."""
    if failed:
        logger.critical("a thread of this worker hangs: the process ends without it", exc_info=sys.exception())
    else:
        logger.warning("a step or a read goes on: the process ends without it")
    logging.shutdown()
    os._exit(int(failed))


async def _serve(config: Config, worker: Worker, changes: ChangeFeed, server: Server) -> None:
    """Serves, known to the gateways, until a signal or trouble. While it drains they send it nothing new, and at its
    end they forget it."""
    own_address = config.worker.advertise or server.address
    links = [GatewayLink(gateway, worker, changes, own_address) for gateway in config.worker.gateways]
    reporting = [asyncio.create_task(link.run()) for link in links]

    async def drain() -> None:
        for link in links:
            link.announce_drain()
        await worker.drain()

    max_quarantined = int(config.transfer.max_quarantined_fraction * config.cache.num_blocks)
    trouble = watch(worker.engine, worker.transfer, max_quarantined, config.engine.max_step_seconds)
    try:
        await serve_until_signal(server, config.worker.drain_seconds, drain, trouble)
    finally:
        for task in reporting:
            task.cancel()
        await asyncio.gather(*reporting, return_exceptions=True)
        await asyncio.gather(*(link.take_leave() for link in links))


def _require_reachable(settings: WorkerSection) -> None:
    """Raises ConfigError where gateways and workers would be told an address that leads back to themselves."""
    if not settings.advertise and settings.address.rpartition(":")[0] in _EVERYWHERE:
        raise ConfigError(
            f"[worker] address {settings.address} listens everywhere, which nobody can call: say in [worker] advertise "
            "where gateways and other workers reach this one, as HOST:PORT"
        )


def _worker_id(config: Config, role: Role) -> WorkerId:
    """Two workers on port 0 must not share a name, even if theirs then changes with every start."""
    address = config.worker.advertise or config.worker.address
    return WorkerId(config.worker.id or f"{role}-{secrets.token_hex(4) if address.endswith(':0') else address}")
