"""Adapters at run time, with real processes: reloads under running turns, slots, and a hundred adapters on a worker."""

import contextlib
import shutil
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from engine.harness import Specialists
from peft import LoraConfig, get_peft_model
from services.system import BLOCK_SIZE, System
from services.test_chain import ids
from tiny import PRIVATE_TARGETS, SHARED_TARGETS, load_reference
from waiting import wait_until

from icarus.adapters.generate import write_random_adapter
from icarus.adapters.metadata import AdapterMetadata, write_metadata
from icarus.cli.local import LocalCluster
from icarus.client import AsyncClient, Client
from icarus.client.results import Model
from icarus.config import (
    CacheSection,
    Config,
    EngineSection,
    GatewaySection,
    MetricsSection,
    ModelSection,
    WorkerSection,
)
from icarus.errors import AlreadyExistsError, FailedPreconditionError, InvalidInputError, NotFoundError
from icarus.model.config import ModelConfig
from icarus.model.digest import base_digest
from icarus.types import AdapterMode
from icarus.worker.v1 import debug_service_pb2, debug_service_pb2_grpc, decode_service_pb2, decode_service_pb2_grpc

SHARED, PRIVATE = AdapterMode.SHARED, AdapterMode.PRIVATE
SLOTS = 8
MANY = [f"n{i:03}" for i in range(100)]
DECODING = debug_service_pb2.TURN_PHASE_DECODING


def write(folder: Path, base: Path, seed: int, rank: int = 4, mode: AdapterMode = SHARED) -> Path:
    targets = PRIVATE_TARGETS if mode == PRIVATE else SHARED_TARGETS
    shape, digest = ModelConfig.from_folder(base), base_digest(base)
    return write_random_adapter(folder, shape, digest, rank, seed, targets, b_scale=0.1, mode=mode)


def write_patterned(folder: Path, base: Path) -> Path:
    """rsLoRA with ranks and alphas by pattern, as peft saves it."""
    torch.manual_seed(5)
    config = LoraConfig(
        r=4,
        lora_alpha=3,
        target_modules=list(SHARED_TARGETS),
        rank_pattern={"layers.0.self_attn.q_proj": 7, "down_proj": 2},
        alpha_pattern={"up_proj": 11, ".*1.mlp.gate_proj": 1},
        use_rslora=True,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(load_reference(base), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape) * 0.15
    model.save_pretrained(str(folder))
    write_metadata(folder, AdapterMetadata(SHARED, base_digest(base)))
    return folder


@pytest.fixture(scope="module")
def root(base, tmp_path_factory) -> Path:
    """The workers' adapter root, with every adapter of this file in it."""
    root = tmp_path_factory.mktemp("root")
    for seed, name in enumerate(("old", "new")):
        write(root / name, base, seed=100 + seed, rank=3 + seed)
        write(root / f"own-{name}", base, seed=200 + seed, mode=PRIVATE)
    write_patterned(root / "patterned", base)
    for name in ("foreign", "unnamed"):
        write(root / name, base, seed=400)
        write_metadata(root / name, AdapterMetadata(SHARED, "ab" * 32))
    for i, name in enumerate(MANY):
        write(root / name, base, seed=300 + i, rank=1 + i % 7)
    return root


@pytest.fixture(scope="module")
def zoo(base, root, tmp_path_factory):
    """Two decode workers with few slots and nothing loaded, and one prefill worker."""
    config = Config(
        model=ModelSection(path=str(base), name="tiny", dtype="float32"),
        cache=CacheSection(num_blocks=512, block_size=BLOCK_SIZE),
        engine=EngineSection(max_batch_tokens=64, num_threads=1),
        gateway=GatewaySection(
            address="127.0.0.1:0", prefill_threshold_tokens=64, heartbeat_seconds=2.0, report_wait_seconds=10.0
        ),
        metrics=MetricsSection(address="127.0.0.1:0"),
        worker=WorkerSection(
            adapter_root=str(root), max_resident_adapters=SLOTS, other_base_adapters=("foreign",), test_hooks=True
        ),
    )
    cluster = LocalCluster(config, decode_adapters=((), ()), log_dir=tmp_path_factory.mktemp("zoo-logs"))
    modes = {folder.name: PRIVATE if folder.name.startswith("own") else SHARED for folder in root.iterdir()}
    with System(cluster, Specialists(base, {name: (root / name, mode) for name, mode in modes.items()})) as running:
        yield running


@pytest.fixture
def client(zoo):
    """Afterwards every adapter is unloaded, the books balance and nothing is left in use."""
    with Client(zoo.address, timeout=60) as client:
        yield client
        for model in client.models():
            if not model.is_base:
                client.unload_adapter(model.name)
    zoo.wait_until_idle()


@contextlib.contextmanager
def decoding_held(zoo: System):
    """Turns that have output stand still on every worker."""
    with contextlib.ExitStack() as stack:
        stubs = []
        for worker in zoo.workers().values():
            channel = stack.enter_context(grpc.insecure_channel(worker.address))
            stubs.append(debug_service_pb2_grpc.DebugServiceStub(channel))
        for stub in stubs:
            stub.HoldPhase(debug_service_pb2.HoldPhaseRequest(phase=DECODING))
            stack.callback(stub.ReleasePhase, debug_service_pb2.ReleasePhaseRequest(phase=DECODING))
        yield


def model(client: Client, name: str) -> Model:
    return next(model for model in client.models() if model.name == name)


def greedy(client: Client, name: str, prompt: list[int], max_tokens: int = 12) -> Any:
    return client.generate(name, token_ids=prompt, max_tokens=max_tokens, ignore_eos=True).result()


@pytest.mark.parametrize("mode", [SHARED, PRIVATE])
def test_a_reload_leaves_running_turns_on_the_weights_they_began_with(zoo, client, root, mode):
    old, new = ("old", "new") if mode == SHARED else ("own-old", "own-new")
    first = client.load_adapter("live", str(root / old))
    assert first.mode is mode
    prompt = ids(40, 1)
    with decoding_held(zoo):
        stream = client.generate("live", token_ids=prompt, max_tokens=100, ignore_eos=True)
        begun = next(stream)
        with pytest.raises(AlreadyExistsError, match="replace"):
            client.load_adapter("live", str(root / new))
        second = client.load_adapter("live", str(root / new), replace=True)
        assert second.digest != first.digest and second.worker_ids == first.worker_ids
    after = greedy(client, "live", prompt)
    before = stream.result()
    assert before.token_ids[: len(begun.token_ids)] == begun.token_ids and len(before.token_ids) == 100
    zoo.check_greedy(old, prompt, before)
    zoo.check_greedy(new, prompt, after)
    with pytest.raises(AssertionError):  # the two differ, so that the checks above can tell
        zoo.check_greedy(new, prompt, before)


def test_only_the_operator_lets_in_an_adapter_of_another_base(client):
    client.load_adapter("foreign", "foreign")
    assert greedy(client, "foreign", [5] * 20).token_ids
    with pytest.raises(FailedPreconditionError, match="other_base_adapters"):
        client.load_adapter("unnamed", "unnamed")


def test_files_that_are_written_over_change_nothing_until_they_are_loaded(zoo, client, root, base):
    folder = root / "overwritten"
    shutil.copytree(root / "old", folder)
    client.load_adapter("live", str(folder))
    prompt = ids(40, 2)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_bytes((root / "new" / name).read_bytes())
    zoo.check_greedy("old", prompt, greedy(client, "live", prompt))
    client.load_adapter("live", str(folder), replace=True)
    zoo.check_greedy("new", prompt, greedy(client, "live", prompt))


def test_shared_blocks_survive_a_reload(zoo, client, root):
    client.load_adapter("live", str(root / "old"), workers=["decode-0"])
    session = client.create_session(token_ids=ids(100, 3))
    session.generate("live", max_tokens=20, ignore_eos=True).result()
    client.load_adapter("live", str(root / "new"), workers=["decode-0"], replace=True)
    history = list(session.token_ids())
    result = session.generate("live", max_tokens=12, ignore_eos=True).result()
    assert result.usage is not None and result.usage.cached_tokens >= len(history) - 1 - BLOCK_SIZE
    zoo.check_greedy("new", history, result)


def test_private_blocks_belong_to_the_weights_that_wrote_them(zoo, client, root):
    prompt = ids(100, 4)
    client.load_adapter("live", str(root / "own-old"))
    greedy(client, "live", prompt)
    assert greedy(client, "live", prompt).usage.cached_tokens >= 100 - BLOCK_SIZE
    client.load_adapter("live", str(root / "own-new"), replace=True)
    renewed = greedy(client, "live", prompt)
    assert renewed.usage.cached_tokens == 0
    zoo.check_greedy("own-new", prompt, renewed)
    client.load_adapter("live", str(root / "own-old"), replace=True)
    back = greedy(client, "live", prompt)
    assert back.usage.cached_tokens >= 100 - BLOCK_SIZE, "the old weights' blocks are theirs again"
    zoo.check_greedy("own-old", prompt, back)


def test_a_replacement_may_change_the_mode(zoo, client, root):
    assert "prefill-0" in client.load_adapter("live", str(root / "own-old")).worker_ids
    loaded = client.load_adapter("live", str(root / "new"), replace=True)
    assert (loaded.mode, loaded.worker_ids) == (SHARED, ("decode-0", "decode-1"))
    wait_until(lambda: model(client, "live") == loaded)
    zoo.check_greedy("new", ids(80, 5), greedy(client, "live", ids(80, 5)))


def test_a_hundred_adapters_on_one_worker_with_few_slots(zoo, client, root):
    for name in MANY:
        client.load_adapter(name, name, workers=["decode-0"], pin=name == MANY[0])
    assert len(client.models().models) == 1 + len(MANY)
    prompts = {name: ids(20 + i % 13, 700 + i) for i, name in enumerate(MANY)}
    streams = {
        name: client.generate(name, token_ids=prompt, max_tokens=6, ignore_eos=True) for name, prompt in prompts.items()
    }
    results = {name: stream.result() for name, stream in streams.items()}
    for name in MANY[::9]:  # ranks 1 to 7 in one batch
        zoo.check_greedy(name, prompts[name], results[name])
    assert all(len(result.token_ids) == 6 for result in results.values())
    zoo.wait_until_idle()

    def resident() -> list[str]:
        return [model.name for model in client.models() if model.resident_worker_ids and not model.is_base]

    wait_until(lambda: len(resident()) == SLOTS)
    assert MANY[0] in resident() and model(client, MANY[0]).pinned
    evicted = next(name for name in MANY if name not in resident())
    zoo.check_greedy(evicted, prompts[evicted], greedy(client, evicted, prompts[evicted]))
    wait_until(lambda: evicted in resident() and len(resident()) == SLOTS)


def test_an_evicted_adapter_whose_folder_changed_is_refused_until_it_is_loaded(zoo, client, root):
    folder = root / "changing"
    shutil.copytree(root / "old", folder)
    client.load_adapter("changing", "changing", workers=["decode-0"])
    for name in MANY[:SLOTS]:
        client.load_adapter(name, name, workers=["decode-0"])
    wait_until(lambda: not model(client, "changing").resident_worker_ids)
    shutil.rmtree(folder)
    shutil.copytree(root / "new", folder)
    prompt = ids(30, 8)
    with pytest.raises(FailedPreconditionError, match=r"'changing' was evicted, and .* holds other weights by now"):
        greedy(client, "changing", prompt)
    shutil.rmtree(folder)
    with pytest.raises(FailedPreconditionError, match="'changing' was evicted and cannot be read again"):
        greedy(client, "changing", prompt)
    zoo.check_greedy(MANY[0], prompt, greedy(client, MANY[0], prompt))
    shutil.copytree(root / "old", folder)
    zoo.check_greedy("old", prompt, greedy(client, "changing", prompt))


def test_pins_are_listed_and_lifted(zoo, client, root):
    client.load_adapter("live", str(root / "old"))
    assert not model(client, "live").pinned
    client.pin_adapter("live")
    assert model(client, "live").pinned
    zoo.wait_for_heartbeats()  # the workers' own word
    assert model(client, "live").pinned
    client.pin_adapter("live", pinned=False)
    assert not model(client, "live").pinned
    with pytest.raises(NotFoundError, match="'nosuch'"):
        client.pin_adapter("nosuch")


async def test_the_asyncio_client_does_the_same(zoo, root):
    async with AsyncClient(zoo.address, timeout=60) as client:
        await client.load_adapter("live", str(root / "old"))
        loaded = await client.load_adapter("live", str(root / "new"), replace=True, pin=True)
        assert loaded.pinned and loaded.resident_worker_ids == loaded.worker_ids == ("decode-0", "decode-1")
        await client.pin_adapter("live", pinned=False)
        assert not next(model for model in await client.models() if model.name == "live").pinned
        await client.unload_adapter("live")


def test_ranks_and_alphas_by_pattern_with_rslora(zoo, client):
    client.load_adapter("patterned", "patterned")
    prompt = ids(30, 9)
    zoo.check_greedy("patterned", prompt, greedy(client, "patterned", prompt, max_tokens=24))


def test_outside_of_the_adapter_root_nothing_is_loaded(client, root, specialists):
    outside = specialists.folder("s0")
    (root / "link").symlink_to(outside)
    for path in (outside, root / "link", root / ".." / ".." / outside.parent.name / "s0", "/etc"):
        with pytest.raises(InvalidInputError, match="outside of this worker's adapter root"):
            client.load_adapter("s0", str(path))
    (root / "link").unlink()
    assert [model.name for model in client.models()] == ["tiny"]


def test_a_worker_refuses_a_turn_that_began_with_other_weights(zoo, client, root):
    loaded = client.load_adapter("live", str(root / "old"))
    with grpc.insecure_channel(zoo.workers()["decode-0"].address) as channel:
        stub = decode_service_pb2_grpc.DecodeServiceStub(channel)

        def begin(digest: str):
            turn = decode_service_pb2.BeginTurn(
                tenant="default",
                turn_id="t",
                token_ids=ids(10, 1),
                adapter="live",
                adapter_digest=digest,
                sampling={"max_tokens": 1, "top_p": 1, "repetition_penalty": 1},
            )
            return stub.Decode(iter([decode_service_pb2.DecodeRequest(begin=turn)]))

        with pytest.raises(grpc.RpcError) as caught:
            list(begin("f" * 64))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]
        assert loaded.digest in caught.value.details() and "f" * 64 in caught.value.details()  # type: ignore[attr-defined]
        events = [event.WhichOneof("event") for event in begin(loaded.digest)]
        assert events == ["reserved", "prompt", "tokens", "finished"]
