"""Real processes over real NIXL, serving a tiny model in float32."""

from pathlib import Path

import pytest
import torch
from engine.harness import Specialists
from services.system import BLOCK_SIZE, System
from tiny import DEVICE, PRIVATE_TARGETS, tiny_adapter, tiny_llama

from icarus.adapters.metadata import AdapterMetadata, write_metadata
from icarus.cli.local import LocalCluster
from icarus.client import Client
from icarus.config import (
    CacheSection,
    Config,
    EngineSection,
    GatewaySection,
    MetricsSection,
    ModelSection,
    WorkerSection,
)
from icarus.model.digest import base_digest
from icarus.types import AdapterMode

SHARED, PRIVATE = AdapterMode.SHARED, AdapterMode.PRIVATE
ON_DECODE_0 = ("s0", "s2", "both")
ON_DECODE_1 = ("s1", "s3", "both")


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    return tiny_llama(tmp_path_factory.mktemp("served") / "tiny", heads=6, kv_heads=2, context=1024)


@pytest.fixture(scope="session")
def specialists(base, tmp_path_factory) -> Specialists:
    folder = tmp_path_factory.mktemp("specialists")
    digest = base_digest(base)
    modes = dict.fromkeys(("s0", "s1", "s2", "s3", "both"), SHARED) | {"own": PRIVATE}
    paths = {}
    for seed, (name, mode) in enumerate(modes.items()):
        targets = {"targets": PRIVATE_TARGETS} if mode == PRIVATE else {}
        paths[name] = tiny_adapter(folder / name, base, rank=3 + seed, seed=seed, **targets)
        if mode == SHARED:
            write_metadata(paths[name], AdapterMetadata(SHARED, digest))
    return Specialists(base, {name: (paths[name], mode) for name, mode in modes.items()})


@pytest.fixture(scope="session")
def make_system(base, specialists, tmp_path_factory):
    """Starts a cluster; `with make_system() as system`."""

    def make(
        num_blocks: int = 512,
        prefix_reuse: bool = True,
        num_prefill: int = 1,
        max_batch_tokens: int = 64,
        heartbeat_seconds: float = 1.0,
        **kwargs,
    ) -> System:
        config = Config(
            model=ModelSection(path=str(base), name="tiny", dtype="float32", device=DEVICE),
            cache=CacheSection(num_blocks=num_blocks, block_size=BLOCK_SIZE, prefix_reuse=prefix_reuse),
            engine=EngineSection(max_batch_tokens=max_batch_tokens, max_running=max_batch_tokens // 2, num_threads=1),
            gateway=GatewaySection(
                address="127.0.0.1:0",
                prefill_threshold_tokens=64,
                heartbeat_seconds=heartbeat_seconds,
                report_wait_seconds=10.0,
            ),
            **{"metrics": MetricsSection(address="127.0.0.1:0"), **kwargs},
        )
        entries = [[f"{name}={specialists.folder(name)}" for name in names] for names in (ON_DECODE_0, ON_DECODE_1)]
        cluster = LocalCluster(
            config,
            decode_adapters=entries,
            num_prefill=num_prefill,
            log_dir=tmp_path_factory.mktemp("logs"),
        )
        return System(cluster, specialists)

    return make


@pytest.fixture(scope="session")
def system(make_system):
    with make_system(worker=WorkerSection(test_hooks=True)) as running:
        yield running


@pytest.fixture
def client(system):
    """A client of the shared system; afterwards every worker's books balance and nothing is left in use."""
    with Client(system.address) as client:
        yield client
    system.wait_until_idle()
