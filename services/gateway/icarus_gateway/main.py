"""The gateway process, put together."""

import asyncio
import dataclasses
import logging
from pathlib import Path

from prometheus_client import CollectorRegistry

from icarus.cache.index import PrefixIndex
from icarus.config import Config, GatewaySection
from icarus.errors import UnavailableError
from icarus.model.hub import resolve_model
from icarus.rpc.call_limit import CallLimitInterceptor
from icarus.rpc.loop_collector import LoopCollector
from icarus.rpc.metrics import MetricsInterceptor, RpcMetrics
from icarus.rpc.metrics_server import MetricsServer, make_registry
from icarus.rpc.model_labels import ModelLabels
from icarus.rpc.server import Server, Service, make_server, serve_until_signal
from icarus.text.served_model import ServedModel, load_served_model
from icarus_gateway.api.cluster_service import ClusterServicer
from icarus_gateway.api.generation_service import GenerationServicer
from icarus_gateway.api.model_service import ModelServicer
from icarus_gateway.api.registry_service import RegistryServicer
from icarus_gateway.api.session_service import SessionServicer
from icarus_gateway.cluster.adapters import Adapters
from icarus_gateway.cluster.block_reports import BlockReports
from icarus_gateway.cluster.placement import Weights
from icarus_gateway.cluster.routing import Router
from icarus_gateway.cluster.workers import WorkerTable
from icarus_gateway.conversations import Conversations
from icarus_gateway.metrics import GatewayMetrics
from icarus_gateway.sessions.session_file import SessionFile
from icarus_gateway.sessions.store import SessionStore
from icarus_gateway.state_metrics import GatewayState
from icarus_gateway.turns.driver import TurnDriver
from icarus_gateway.turns.prefill_stage import PrefillStage
from icarus_gateway.turns.runs import TurnRuns

log = logging.getLogger(__name__)

_SWEEP_SECONDS = 60.0
_STAGE_MARGIN = 0.9  # the decode worker gives up its reservation at the whole of `stage_timeout_seconds`

_NEVER_REFUSED = ("icarus.v1.GenerationService/CancelTurn",)
"""It makes room."""


async def serve(config: Config) -> None:
    """Loads the tokenizer, serves until SIGTERM or SIGINT, then drains. Raises ConfigError before it serves."""
    model = await asyncio.to_thread(_load_model, config)
    workers = WorkerTable(model.name, config.gateway.heartbeat_seconds, config.gateway.max_engine_age_seconds)
    store = await asyncio.to_thread(make_session_store, config, model)
    registry = make_registry()
    sweeping = asyncio.create_task(_sweep(store))
    try:
        runs = make_turn_runs(config.gateway, store)
        server, *helpers = build_servers(config, model, workers, store, runs, registry)

        async def prepare() -> None:
            if not helpers:  # a server that drains refuses heartbeats
                workers.stop_listening()

        settle = runs.settle if config.gateway.session_file else None  # what nobody listens to is lost without one
        with MetricsServer(config.metrics.address, registry):
            await serve_until_signal(server, config.gateway.drain_seconds, prepare, helpers=helpers, settle=settle)
    finally:
        sweeping.cancel()
        await store.close()
        await workers.close()


def _load_model(config: Config) -> ServedModel:
    folder = resolve_model(config.model.path, log.info)
    model = load_served_model(folder, config.model.served_name)
    if model.chat is not None and model.chat.problem:
        log.warning("no messages in sessions", extra={"model": model.name, "reason": model.chat.problem})
    if model.template_problem:
        log.warning("no messages", extra={"model": model.name, "reason": model.template_problem})
    return model


def make_session_store(config: Config, model: ServedModel) -> SessionStore:
    """Reads the session file, if one is named. Raises ConfigError where it cannot be used."""
    settings, file = config.gateway, None
    if settings.session_file:
        file = SessionFile.open(Path(settings.session_file), model.name, model.tokenizer.vocabulary_digest)
    return SessionStore(settings.max_sessions, settings.session_ttl_seconds, file=file)


def make_turn_runs(settings: GatewaySection, store: SessionStore) -> TurnRuns:
    """With the turns that the store remembers."""
    runs = TurnRuns(
        settings.max_remembered_turns,
        settings.max_remembered_tokens,
        settings.remember_turn_seconds,
        settings.resume_grace_seconds,
    )
    for turn in store.finished_turns():
        runs.restore(turn)
    return runs


async def _sweep(store: SessionStore) -> None:
    """Forgets expired sessions that nobody asks for."""
    while True:
        await asyncio.sleep(_SWEEP_SECONDS)
        try:
            if num_expired := await store.sweep():
                log.info("sessions expired", extra={"count": num_expired})
        except UnavailableError:
            continue  # logged, and written at the next time


def _weights(settings: GatewaySection) -> Weights:
    return Weights(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(Weights)})


def build_servers(
    config: Config,
    model: ServedModel,
    workers: WorkerTable,
    store: SessionStore,
    runs: TurnRuns,
    registry: CollectorRegistry,
) -> list[Server]:
    """The bound servers with every service of the gateway: the clients' and, where workers have an address of their
    own, theirs.

    Raises ConfigError where an address is taken.
    """
    settings = config.gateway
    reports = BlockReports(PrefixIndex(), workers)
    router = Router(workers, reports.index, model.name, _weights(settings))
    prefill_stage = PrefillStage(workers, config.transfer.stage_timeout_seconds * _STAGE_MARGIN)
    labels = ModelLabels(model.name, workers.adapters)
    metrics = GatewayMetrics.register(registry)
    driver = TurnDriver(
        workers, reports, router, model.tokenizer, prefill_stage, metrics, labels, settings.report_wait_seconds
    )
    conversations = Conversations(model, store, driver, runs)
    registry.register(LoopCollector(GatewayState(workers, reports.index, store, conversations).read))
    for_clients = [
        Service.of(SessionServicer(model, conversations)),
        Service.of(GenerationServicer(model, conversations)),
        Service.of(ModelServicer(model, workers, Adapters(workers, model.name))),
        Service.of(ClusterServicer(workers)),
    ]
    for_workers = [Service.of(RegistryServicer(workers, reports))]
    return _listen(settings, for_clients, for_workers, MetricsInterceptor(RpcMetrics.register(registry)))


def _listen(
    settings: GatewaySection, for_clients: list[Service], for_workers: list[Service], counting: MetricsInterceptor
) -> list[Server]:
    def listen(address: str, services: list[Service], setting: str) -> Server:
        limit = CallLimitInterceptor(settings.max_calls, "[gateway] max_calls", _NEVER_REFUSED)
        return make_server(address, services, [counting], limit, setting)

    if not settings.worker_address:
        return [listen(settings.address, [*for_clients, *for_workers], "[gateway] address")]
    return [
        listen(settings.address, for_clients, "[gateway] address"),
        listen(settings.worker_address, for_workers, "[gateway] worker_address"),
    ]
