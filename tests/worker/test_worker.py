"""What a worker takes from its settings."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import PRIVATE_TARGETS, tiny_adapter, tiny_llama

from icarus.adapters.metadata import AdapterMetadata, write_metadata
from icarus.config import Config, ModelSection, WorkerSection
from icarus.errors import ConfigError, InvalidInputError
from icarus.model.digest import base_digest
from icarus.model.two_stream import TwoStreamModel
from icarus.rpc.metrics_server import make_registry
from icarus.types import AdapterMode, Role, SamplingParams, WorkerId
from icarus.worker.build import _make_transport, build_worker
from icarus.worker.change_feed import ChangeFeed
from icarus.worker.metrics import WorkerMetrics
from icarus.worker.turn_spec import TurnSpec
from icarus.worker.worker import Worker


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


async def build(config: Config, role: Role = Role.DECODE) -> Worker:
    return await build_worker(config, role, WorkerId("w"), ChangeFeed(), WorkerMetrics.register(make_registry()))


async def test_a_gpus_trial_step_has_the_adapters_beside_it(settings, monkeypatch, caplog):
    caplog.set_level("INFO")
    num_loaded = []

    def trial(*_: object) -> None:
        num_loaded.append([record.message for record in caplog.records].count("adapter loaded"))

    monkeypatch.setattr("icarus.worker.build.try_a_step", trial)
    await build(settings)
    assert not num_loaded, "a CPU has no such limit"
    caplog.clear()
    monkeypatch.setattr(TwoStreamModel, "device", torch.device("cuda"))
    await build(settings)
    assert num_loaded == [3]


@pytest.mark.parametrize(("expandable", "offset", "warned"), [(True, 0, 1), (True, 2**20, 0), (False, 0, 0)])
def test_a_pool_that_ucx_cannot_share_is_told(monkeypatch, caplog, expandable, offset, warned):
    """As torch's snapshot has it: whoever asked for such memory, and wherever."""
    address = 2**40
    tensor = SimpleNamespace(device=torch.device("cuda"), data_ptr=lambda: address + offset)
    segment = {"address": address, "total_size": 2**20, "is_expandable": expandable}
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: "native")
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: [segment])
    monkeypatch.setattr("icarus.worker.build.NixlTransport", lambda region: region)
    region = _make_transport(SimpleNamespace(tensor=tensor, block_bytes=64, num_blocks=2))
    assert region.device == "cuda" and region.base_address == address + offset
    assert ["expandable_segments" in record.message for record in caplog.records] == [True] * warned


async def test_models_of_the_same_weights_that_compute_other_kv_have_other_fingerprints(tmp_path):
    folders = [tiny_llama(tmp_path / name) for name in ("one", "other")]
    file = folders[1] / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rms_norm_eps": 0.01}))
    one, other = [
        (await build(Config(model=ModelSection(path=str(folder), dtype="float32")))).identity for folder in folders
    ]
    assert one.base_digest == other.base_digest and one.fingerprint != other.fingerprint


async def test_token_ids_end_with_the_vocabulary(tmp_path):
    worker = await build(Config(model=ModelSection(path=str(tiny_llama(tmp_path / "tiny")), dtype="float32")))
    await worker.turn(TurnSpec("default", "t", [319], "", SamplingParams()))
    with pytest.raises(InvalidInputError, match=r"token id 320 is outside the vocabulary \[0, 320\)"):
        await worker.turn(TurnSpec("default", "t", [320], "", SamplingParams()))


@pytest.mark.parametrize(
    ("adapter", "mode", "prefill_only", "needs"),
    [
        ("", "", False, False),
        ("a", "", False, True),
        ("a", AdapterMode.SHARED, False, True),
        ("a", AdapterMode.SHARED, True, False),
        ("a", AdapterMode.PRIVATE, True, True),
        ("a", "", True, False),
    ],
)
def test_the_base_alone_writes_a_shared_specialists_prefill(adapter, mode, prefill_only, needs):
    spec = TurnSpec("default", "t", [5], adapter, SamplingParams(), adapter_mode=mode, prefill_only=prefill_only)
    assert spec.needs_weights == needs


@pytest.mark.parametrize(
    ("role", "names"),
    [(Role.DECODE, ["asked", "shared", "trained"]), (Role.PREFILL, ["asked", "trained"])],
)
async def test_prefill_workers_take_private_adapters_alone(settings, role, names):
    metrics = WorkerMetrics.register(make_registry())
    worker = await build_worker(settings, role, WorkerId("w"), ChangeFeed(), metrics)
    assert sorted(adapter.name for adapter in worker.adapters.list()) == names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny", r"\[worker\] adapters: 'tiny=/a': 'tiny' is the base model's name"),
        ("n" * 129, "adapters: 'n+=/a': name has 129 characters; an adapter's has at most 128"),
    ],
    ids=["the base's", "long"],
)
async def test_adapters_at_start_are_named_as_those_that_are_loaded_later(settings, name, message):
    with pytest.raises(ConfigError, match=message):
        await build(replace(settings, worker=WorkerSection(adapters=(f"{name}=/a",))))


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize(("entry", "root"), [("a=~/trained", ""), ("a=trained", "~"), ("a=~/trained", "~")])
async def test_adapters_are_found_in_the_home_of_the_user(settings, monkeypatch, role, entry, root):
    monkeypatch.setenv("HOME", str(Path(settings.model.path).parent))
    worker = await build(replace(settings, worker=WorkerSection(adapters=(entry,), adapter_root=root)), role)
    assert [adapter.name for adapter in worker.adapters.list()] == ["a"]
