"""Puts a worker together from its settings: the model, the pool, the threads and the adapters."""

import asyncio
import logging
import os
import secrets
from pathlib import Path

import torch

from icarus.adapters.lora import LoraWeights
from icarus.adapters.metadata import read_metadata
from icarus.adapters.names import check_name
from icarus.adapters.peft_folder import load_peft_folder
from icarus.adapters.registry import AdapterRegistry
from icarus.adapters.root import resolve_folder
from icarus.cache.hashing import cache_fingerprint
from icarus.cache.kv import LAYOUT, KVPool
from icarus.cache.leases import LeaseTable
from icarus.cache.pool import BlockPool
from icarus.config import Config
from icarus.engine.engine import Engine
from icarus.engine.lender import Lender
from icarus.engine.runner import Runner
from icarus.engine.scheduler import Scheduler
from icarus.engine.thread import EngineThread
from icarus.errors import ConfigError, IcarusError, OverloadedError
from icarus.model.config import ModelConfig
from icarus.model.digest import base_digest
from icarus.model.hub import resolve_model
from icarus.model.loading import load_model
from icarus.model.two_stream import TwoStreamModel
from icarus.transfer.nixl import NixlTransport
from icarus.transfer.thread import TransferThread
from icarus.transfer.transport import PoolRegion
from icarus.types import AdapterMode, Role, WorkerId
from icarus.worker.adapter_host import AdapterHost
from icarus.worker.adapter_reads import AdapterReads
from icarus.worker.change_feed import ChangeFeed
from icarus.worker.compute import prepare_compute, run_in_passing_thread
from icarus.worker.metrics import WorkerMetrics
from icarus.worker.phases import PhaseGates, TurnPhase, computing_phases
from icarus.worker.trial_step import try_a_step
from icarus.worker.worker import Identity, Worker

logger = logging.getLogger(__name__)


async def build_worker(
    config: Config, role: Role, worker_id: WorkerId, changes: ChangeFeed, metrics: WorkerMetrics
) -> Worker:
    """Loads the model and the adapters named in the settings; nothing runs yet. Raises ConfigError."""
    entries = [parse_adapter_entry(entry, config.model.served_name) for entry in config.worker.adapters]
    folder = await asyncio.to_thread(resolve_model, config.model.path, logger.info)
    model, kv = await run_in_passing_thread(_load, config, folder)
    worker = await run_in_passing_thread(_build, config, role, worker_id, folder, model, kv, changes, metrics)
    for name, path, mode in entries:
        if role is Role.PREFILL and not _is_private(Path(_adapter_root(config), path), mode):
            continue  # the base writes a shared specialist's KV
        try:
            info = await worker.adapters.load(name, path, mode)
        except OverloadedError as error:
            raise ConfigError(f"[worker] adapters: {error}") from None
        logger.info("adapter loaded", extra={"adapter": info.name, "mode": info.mode.value, "rank": info.rank})
    if model.device.type == "cuda":  # with all that fills it there
        await run_in_passing_thread(try_a_step, model, kv, config.engine)
    return worker


def _is_private(folder: Path, mode: AdapterMode | None) -> bool:
    metadata = read_metadata(folder) if mode is None else None
    return (metadata.mode if metadata else mode) is AdapterMode.PRIVATE


def _adapter_root(config: Config) -> str:
    return os.path.expanduser(config.worker.adapter_root)


def parse_adapter_entry(entry: str, base_model: str) -> tuple[str, str, AdapterMode | None]:
    """NAME=FOLDER or NAME=FOLDER:private (or :shared), as settings have it, where `~` is the user's home. Raises
    ConfigError for the name."""
    name, _, path = entry.partition("=")
    try:
        check_name(name, base_model)
    except IcarusError as error:
        raise ConfigError(f"[worker] adapters: {entry!r}: {error}") from None
    path = os.path.expanduser(path)
    folder, colon, mode = path.rpartition(":")
    if colon and mode in set(AdapterMode):
        return name, folder, AdapterMode(mode)
    return name, path, None


def _load(config: Config, folder: Path) -> tuple[TwoStreamModel, KVPool]:
    prepare_compute(config.engine.num_threads)
    settings, cache = config.model, config.cache
    model = load_model(folder, settings.dtype, settings.device, _log_progress)
    return model, KVPool(model.config, cache.num_blocks, cache.block_size, settings.dtype, settings.device)


def _build(
    config: Config,
    role: Role,
    worker_id: WorkerId,
    folder: Path,
    model: TwoStreamModel,
    kv: KVPool,
    changes: ChangeFeed,
    metrics: WorkerMetrics,
) -> Worker:
    shape = model.config
    digest = base_digest(folder)
    dtype, block_size = config.model.dtype, config.cache.block_size
    fingerprint = cache_fingerprint(digest, dtype, shape.canonical(), block_size, LAYOUT)
    instance_id = secrets.token_hex(8)
    identity = Identity(
        worker_id=worker_id,
        instance_id=instance_id,
        role=role,
        base_model=config.model.served_name,
        base_digest=digest,
        fingerprint=fingerprint,
        block_size=block_size,
        num_blocks=config.cache.num_blocks,
        block_bytes=kv.block_bytes,
        context_length=shape.context_length,
        vocab_size=shape.vocab_size,
    )
    gates = PhaseGates()
    runner = Runner(model, kv, config.model.device, config.engine.cuda_graphs)
    engine = _build_engine(config, runner, instance_id, gates, metrics)
    transfer = TransferThread(
        lambda: _make_transport(kv),
        config.transfer.read_timeout_seconds,
        config.transfer.max_queued_reads,
        hold_reads=lambda: gates.stops(TurnPhase.TRANSFERRING),
    )
    engine_thread = EngineThread(
        engine,
        changes.publish_threadsafe,
        hold_step=lambda engine: gates.stops_any(computing_phases(engine.running)),
    )
    adapters = _build_adapters(config, shape, digest)
    return Worker(
        identity,
        adapters,
        engine_thread,
        transfer,
        gates,
        metrics,
        prefix_reuse=config.cache.prefix_reuse,
        max_step_seconds=config.engine.max_step_seconds,
    )


def _build_adapters(config: Config, shape: ModelConfig, base_digest: str) -> AdapterHost:
    def read(folder: Path, name: str, mode: AdapterMode | None) -> LoraWeights:
        return load_peft_folder(
            folder,
            name,
            mode,
            shapes=shape.linear_shapes,
            num_layers=shape.num_layers,
            base_digest=base_digest,
            dtype=getattr(torch, config.model.dtype),
            device=config.model.device,
            allow_other_base=name in config.worker.other_base_adapters,
        )

    return AdapterHost(
        AdapterRegistry(config.worker.max_resident_adapters),
        AdapterReads(lambda path, name: resolve_folder(path, name, _adapter_root(config)), read),
        config.engine.max_waiting,
    )


def _build_engine(
    config: Config, runner: Runner, instance_id: str, gates: PhaseGates, metrics: WorkerMetrics
) -> Engine:
    pool = BlockPool(config.cache.num_blocks)
    settings = config.engine
    scheduler = Scheduler(
        pool, settings.max_batch_tokens, settings.max_running, settings.max_waiting, config.cache.prefix_reuse
    )
    max_leased = int(config.transfer.max_leased_fraction * config.cache.num_blocks)
    return Engine(
        runner,
        pool,
        scheduler,
        Lender(pool, LeaseTable(config.transfer.lease_seconds), instance_id, max_leased),
        hold_admission=lambda: gates.stops(TurnPhase.QUEUED),
        on_step=metrics.observe_step,
    )


def _make_transport(kv: KVPool) -> NixlTransport:
    """Runs on the transfer thread."""
    device = kv.tensor.device
    if device.type == "cuda":
        # Gives this thread the device's context: without one UCX may pass over reads from GPU to GPU. And the pool's
        # zeros are there before anything is read into it.
        torch.cuda.synchronize(device)
        _warn_of_expandable_segments(kv)
    region = PoolRegion(kv.tensor.data_ptr(), kv.block_bytes, kv.num_blocks, device.type, device.index or 0)
    return NixlTransport(region)


def _warn_of_expandable_segments(kv: KVPool) -> None:
    if torch.cuda.get_allocator_backend() != "native":
        return  # no other has segments
    address = kv.tensor.data_ptr()
    for segment in torch.cuda.memory_snapshot():
        if segment["is_expandable"] and 0 <= address - segment["address"] < segment["total_size"]:
            logger.warning(
                "the KV pool is in an expandable segment (PYTORCH_ALLOC_CONF or PYTORCH_CUDA_ALLOC_CONF), which UCX "
                "cannot share: other workers of this machine read it by TCP. Leave expandable_segments out"
            )


def _log_progress(done: int, total: int) -> None:
    step = max(1, total // 10)
    if done % step == 0 or done == total:
        logger.info("loading weights", extra={"tensors": done, "of": total})
