"""What a worker takes from its settings."""

import pytest
import torch
from tiny import PRIVATE_TARGETS, tiny_adapter, tiny_llama

from icarus.adapters.metadata import AdapterMetadata, write_metadata
from icarus.config import Config, ModelSection, WorkerSection
from icarus.model.digest import base_digest
from icarus.rpc.metrics_server import make_registry
from icarus.types import AdapterMode, Role, WorkerId
from icarus.worker.build import build_worker
from icarus.worker.change_feed import ChangeFeed
from icarus.worker.metrics import WorkerMetrics


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Config:
    """One file for all workers: a shared specialist, one trained private, and one that is asked for as private."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("worker")
    base = tiny_llama(folder / "tiny")
    paths = {name: tiny_adapter(folder / name, base, seed=i) for i, name in enumerate(("shared", "asked"))}
    paths["trained"] = tiny_adapter(folder / "trained", base, targets=PRIVATE_TARGETS)
    for name, mode in (("shared", AdapterMode.SHARED), ("trained", AdapterMode.PRIVATE)):
        write_metadata(paths[name], AdapterMetadata(mode, base_digest(base)))
    entries = (f"shared={paths['shared']}", f"trained={paths['trained']}", f"asked={paths['asked']}:private")
    return Config(model=ModelSection(path=str(base), dtype="float32"), worker=WorkerSection(adapters=entries))


@pytest.mark.parametrize(
    ("role", "names"),
    [(Role.DECODE, ["asked", "shared", "trained"]), (Role.PREFILL, ["asked", "trained"])],
)
async def test_prefill_workers_take_private_adapters_alone(settings, role, names):
    metrics = WorkerMetrics.register(make_registry())
    worker = await build_worker(settings, role, WorkerId("w"), ChangeFeed(), metrics)
    assert sorted(adapter.name for adapter in worker.adapters.list()) == names
