"""Whatever a caller, an operator or a foreign worker sends: a status, a text that names the thing and the value,
nothing lost, and the next good request works. The `client` fixture checks books and idleness after each test."""

import json
import math
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
import torch
from safetensors.torch import load_file, save_file
from services.system import BLOCK_SIZE, System
from services.test_chain import ids
from tiny import tiny_llama
from waiting import wait_until

from icarus.adapters.metadata import AdapterMetadata, write_metadata
from icarus.client import Client
from icarus.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    IcarusError,
    InvalidInputError,
    NotFoundError,
)
from icarus.model.digest import base_digest
from icarus.rpc.messages import PROTOCOL_VERSION
from icarus.types import AdapterMode
from icarus.v1 import model_service_pb2, model_service_pb2_grpc
from icarus.worker.v1 import block_service_pb2, block_service_pb2_grpc, registry_service_pb2, registry_service_pb2_grpc

CONTEXT, VOCABULARY = 1024, 320
PROMPT = [5, 6, 7]


def check_good_turn(system: System, client: Client) -> None:
    result = client.generate("s0", token_ids=PROMPT, max_tokens=2).result()
    system.check_greedy("s0", PROMPT, result)


def refused(error: type[IcarusError], call: Callable[[], object], *fragments: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    for fragment in fragments:
        assert fragment in str(caught.value)


TURNS = {
    "temperature below 0": ({"temperature": -0.5}, "temperature is -0.5"),
    "temperature is no number": ({"temperature": math.nan}, "temperature is nan"),
    "temperature without bound": ({"temperature": math.inf}, "temperature is inf"),
    "top_p 0": ({"top_p": 0.0}, "top_p is 0", "(0, 1]"),
    "top_p above 1": ({"top_p": 1.5}, "top_p is 1.5", "(0, 1]"),
    "top_k below 0": ({"top_k": -1}, "top_k is -1"),
    "min_p above 1": ({"min_p": 2.0}, "min_p is 2", "[0, 1]"),
    "frequency_penalty": ({"frequency_penalty": 2.5}, "frequency_penalty is 2.5", "[-2, 2]"),
    "presence_penalty": ({"presence_penalty": -3.0}, "presence_penalty is -3", "[-2, 2]"),
    "repetition_penalty": ({"repetition_penalty": 0.0}, "repetition_penalty is 0"),
    "min_tokens above max_tokens": ({"min_tokens": 9, "max_tokens": 8}, "min_tokens is 9", "8"),
    "logprobs": ({"logprobs": 21}, "logprobs is 21", "[0, 20]"),
    "max_tokens 0": ({"max_tokens": 0}, "max_tokens is 0"),
    "max_tokens below 0": ({"max_tokens": -7}, "max_tokens is -7"),
    "too many stop strings": ({"stop": ["x"] * 17}, "stop strings is 17", "at most 16"),
    "an empty stop string": ({"stop": ["a", ""]}, "stop is ['a', '']"),
    "a stop token outside the vocabulary": ({"stop_token_ids": [VOCABULARY]}, "stop_token_ids[0] is 320"),
    "a token outside the vocabulary": ({"token_ids": [5, VOCABULARY]}, "token_ids[1] is 320", "[0, 320)"),
    "an empty prompt": ({"token_ids": []}, "token_ids is empty"),
    "an empty text": ({"token_ids": None, "text": ""}, "text is empty"),
    "no messages": ({"token_ids": None, "messages": []}, "messages is empty"),
    "an unknown role": (
        {"token_ids": None, "messages": [{"role": "wizard", "content": "x"}]},
        "messages[0].role is 'wizard'",
    ),
    "beyond the context": ({"token_ids": ids(1000, 1), "max_tokens": 25}, "1000", "25", "1025", "1024"),
    "a tenant's name too long": ({"tenant": "t" * 257}, "tenant is 257"),
    "a turn's name too long": ({"turn_id": "t" * 257}, "turn_id is 257"),
}


@pytest.mark.parametrize(("wrong", "fragments"), [(wrong, rest) for wrong, *rest in TURNS.values()], ids=list(TURNS))
def test_turns(system, client, wrong, fragments):
    wrong = {"token_ids": PROMPT, **wrong}
    tenant = wrong.pop("tenant", None)
    if tenant is not None:
        with Client(system.address, tenant=tenant) as other:
            refused(InvalidInputError, lambda: other.generate("s0", **wrong).result(), *fragments)
        return
    session = client.create_session(token_ids=PROMPT)
    refused(InvalidInputError, lambda: client.generate("s0", **wrong).result(), *fragments)
    with pytest.raises(InvalidInputError):
        session.generate("s0", **wrong).result()
    assert list(session.token_ids()) == PROMPT
    session.delete()
    check_good_turn(system, client)


def test_names_that_are_not_there(system, client):
    refused(NotFoundError, lambda: client.generate("nobody", token_ids=PROMPT).result(), "'nobody'", "s0")
    refused(NotFoundError, lambda: client.unload_adapter("nobody"), "'nobody'")
    gone = client.session("not-a-session")
    for call in (
        gone.token_ids,
        gone.delete,
        lambda: gone.append(token_ids=PROMPT),
        lambda: gone.generate("s0").result(),
    ):
        refused(NotFoundError, call, "not-a-session")
    session = client.create_session(token_ids=PROMPT)
    refused(NotFoundError, lambda: session.generate("nobody", token_ids=[9]).result(), "'nobody'")
    assert list(session.token_ids()) == PROMPT
    check_good_turn(system, client)


def test_a_message_over_the_limit(system, client):
    text = "x" * (33 * 2**20)
    refused(InvalidInputError, lambda: client.generate("s0", text).result(), "larger than max")
    refused(InvalidInputError, lambda: client.create_session(text), "larger than max")
    check_good_turn(system, client)


BAD_TEXT = b"\x02\xff\xfe"
RAW = {
    "a turn's model": ("unary_stream", "GenerationService/Generate", b"\x1a" + BAD_TEXT, "model is not valid UTF-8"),
    "a turn's text": (
        "unary_stream",
        "GenerationService/Generate",
        b"\x22\x04\x12" + BAD_TEXT,
        "content.text is not valid UTF-8",
    ),
    "a session": ("unary_stream", "SessionService/GenerateTurn", b"\x12" + BAD_TEXT, "session_id is not valid UTF-8"),
    "an adapter": ("unary_unary", "ModelService/LoadAdapter", b"\x0a" + BAD_TEXT, "name is not valid UTF-8"),
    "no message at all": ("unary_unary", "SessionService/CreateSession", b"\xff\xff\xff", "CreateSessionRequest"),
    "half a message": ("unary_unary", "ModelService/LoadAdapter", b"\x0a\x7f", "LoadAdapterRequest"),
}


@pytest.mark.parametrize(("kind", "method", "data", "said"), RAW.values(), ids=list(RAW))
def test_bytes_that_are_no_request(system, client, kind, method, data, said):
    with grpc.insecure_channel(system.address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            answer = getattr(channel, kind)(f"/icarus.v1.{method}")(data)
            next(iter(answer))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert said in caught.value.details()
    check_good_turn(system, client)


def test_a_workers_stream_of_bytes_that_are_no_request(system, client):
    with grpc.insecure_channel(system.workers()["decode-0"].address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            list(channel.stream_stream("/icarus.worker.v1.DecodeService/Decode")(iter([b"\x0a\x04\x2a" + BAD_TEXT])))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "begin.adapter is not valid UTF-8" in caught.value.details()
    check_good_turn(system, client)


def test_beyond_the_pool(make_system):
    with make_system(num_blocks=40, num_prefill=0) as small, Client(small.address) as client:
        refused(
            InvalidInputError,
            lambda: client.generate("s0", token_ids=ids(300, 1), max_tokens=100).result(),
            "400 tokens",
            f"50 blocks of {BLOCK_SIZE}",
            "has 40",
        )
        check_good_turn(small, client)
        small.wait_until_idle()


# -- adapters --------------------------------------------------------------------------------------------------------


def settings(**changes: object) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return write


def tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        loaded = load_file(path)
        change(loaded)
        save_file(loaded, path)

    return write


def file_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return write


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def add_lm_head(loaded: dict[str, torch.Tensor]) -> None:
    loaded["base_model.model.lm_head.lora_A.weight"] = torch.zeros(3, 96)


def spoil(loaded: dict[str, torch.Tensor]) -> None:
    loaded[FIRST][0, 0] = math.nan


def widen(loaded: dict[str, torch.Tensor]) -> None:
    loaded[FIRST] = loaded[FIRST].double()


def lie(data: bytes) -> bytes:
    """The header says that a tensor is longer than its bytes."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header[FIRST]["shape"] = [header[FIRST]["shape"][0], 10**9]
    changed = json.dumps(header).encode()
    return len(changed).to_bytes(8, "little") + changed + data[8 + size :]


ADAPTERS = {
    "DoRA": (settings(use_dora=True), InvalidInputError, "DoRA"),
    "modules_to_save": (settings(modules_to_save=["lm_head"]), InvalidInputError, "modules_to_save"),
    "biases": (settings(bias="all"), InvalidInputError, "bias='all'"),
    "LoRA on lm_head": (tensors(add_lm_head), InvalidInputError, "lm_head"),
    "rank above the limit": (settings(r=300), InvalidInputError, "r is 300", "256"),
    "another kind of adapter": (settings(peft_type="IA3"), InvalidInputError, "'IA3'"),
    "NaN": (tensors(spoil), InvalidInputError, "lora_A of q_proj in layer 0", "NaN"),
    "a wrong dtype": (tensors(widen), InvalidInputError, "q_proj.lora_A.weight", "F64"),
    "a header that lies about sizes": (file_bytes(lie), InvalidInputError, "adapter_model.safetensors"),
    "a header longer than the file": (
        file_bytes(lambda data: (2**62).to_bytes(8, "little") + data[8:]),
        InvalidInputError,
        "adapter_model.safetensors",
    ),
    "truncated": (file_bytes(lambda data: data[:-100]), InvalidInputError, "adapter_model.safetensors"),
    "empty weights": (file_bytes(lambda data: b""), InvalidInputError, "adapter_model.safetensors"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), InvalidInputError, "does not exist"),
    "for another base": (
        lambda folder: write_metadata(folder, AdapterMetadata(AdapterMode.SHARED, "a" * 64)),
        FailedPreconditionError,
        "a" * 64,
    ),
    "not made by our trainer, no mode": (
        lambda folder: (folder / "icarus.json").unlink(),
        FailedPreconditionError,
        "icarus.json",
        "private",
    ),
}


@pytest.mark.parametrize(("spoil", "error", "fragments"), [(a, b, c) for a, b, *c in ADAPTERS.values()], ids=ADAPTERS)
def test_adapters(system, client, tmp_path, spoil, error, fragments):
    folder = tmp_path / "spoilt"
    shutil.copytree(system.specialists.folder("s0"), folder)
    spoil(folder)
    before = [model.name for model in client.models()]
    refused(error, lambda: client.load_adapter("spoilt", str(folder)), "'spoilt'", *fragments)
    assert [model.name for model in client.models()] == before
    check_good_turn(system, client)


def test_adapters_that_write_kv_are_private(base, system, client, tmp_path):
    own = system.specialists.folder("own")
    refused(FailedPreconditionError, lambda: client.load_adapter("own", str(own)), "'own'", "private")
    folder = tmp_path / "claims"
    shutil.copytree(own, folder)
    write_metadata(folder, AdapterMetadata(AdapterMode.SHARED, base_digest(base)))
    refused(InvalidInputError, lambda: client.load_adapter("own", str(folder)), "k_proj and v_proj", "private")
    assert "own" not in [model.name for model in client.models()]
    check_good_turn(system, client)


def test_wrong_ways_to_load(system, client, tmp_path):
    good = str(system.specialists.folder("s0"))
    refused(InvalidInputError, lambda: client.load_adapter("x", str(tmp_path / "none")), "'x'", str(tmp_path / "none"))
    refused(InvalidInputError, lambda: client.load_adapter("", good), "name is ''")
    refused(InvalidInputError, lambda: client.load_adapter("x", ""), "path is ''")
    refused(AlreadyExistsError, lambda: client.load_adapter("tiny", good), "'tiny'")
    refused(NotFoundError, lambda: client.load_adapter("x", good, workers=["decode-9"]), "'decode-9'", "decode-0")
    refused(InvalidInputError, lambda: client.load_adapter("x", good, workers=["prefill-0"]), "'prefill-0'", "private")
    with grpc.insecure_channel(system.address) as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.LoadAdapter(model_service_pb2.LoadAdapterRequest(name="x", path=good, mode=7))  # type: ignore[arg-type]
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT and "mode is 7" in caught.value.details()
    assert "x" not in [model.name for model in client.models()]
    check_good_turn(system, client)


# -- workers ---------------------------------------------------------------------------------------------------------


def introduction(system: System, base: Path, **changes) -> registry_service_pb2.RegisterRequest:
    """A decode worker that would fit, but for `changes`; nobody listens at its address."""
    with grpc.insecure_channel(system.workers()["decode-0"].address) as channel:
        stub = block_service_pb2_grpc.BlockServiceStub(channel)
        metadata = stub.GetTransferMetadata(block_service_pb2.GetTransferMetadataRequest())
    fits = {
        "worker_id": "a-stranger",
        "instance_id": "1",
        "role": "decode",
        "address": "127.0.0.1:1",
        "protocol_version": PROTOCOL_VERSION,
        "base_model": "tiny",
        "base_digest": base_digest(base),
        "cache_fingerprint": metadata.cache_fingerprint,
        "block_size": BLOCK_SIZE,
        "num_blocks": 10**6,
        "context_length": CONTEXT,
    }
    return registry_service_pb2.RegisterRequest(**{**fits, **changes})


WORKERS = {
    "another protocol": ({"protocol_version": 99}, "FAILED_PRECONDITION", "a-stranger", "99", str(PROTOCOL_VERSION)),
    "another base": ({"base_digest": "b" * 64}, "FAILED_PRECONDITION", "base_digest", "b" * 64),
    "another layout": ({"cache_fingerprint": "f"}, "FAILED_PRECONDITION", "cache_fingerprint f"),
    "another block size": ({"block_size": 16}, "FAILED_PRECONDITION", "block_size 16"),
    "no block size": ({"block_size": 0}, "INVALID_ARGUMENT", "block_size is 0"),
    "an unknown role": ({"role": "cook"}, "INVALID_ARGUMENT", "'cook'", "prefill, decode"),
    "no address": ({"address": ""}, "INVALID_ARGUMENT", "address is empty"),
    "an adapter of an unknown mode": (
        {"adapters": [registry_service_pb2.Adapter(name="x", mode="both")]},
        "INVALID_ARGUMENT",
        "'both'",
    ),
}


@pytest.mark.parametrize(("changes", "code", "fragments"), [(a, b, c) for a, b, *c in WORKERS.values()], ids=WORKERS)
def test_incompatible_workers(system, client, base, changes, code, fragments):
    with grpc.insecure_channel(system.address) as channel:
        stub = registry_service_pb2_grpc.RegistryServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Register(introduction(system, base, **changes))
        assert caught.value.code().name == code
        for fragment in fragments:
            assert fragment in caught.value.details()
        with pytest.raises(grpc.RpcError) as caught:
            stub.Heartbeat(registry_service_pb2.HeartbeatRequest(worker_id="a-stranger", instance_id="1"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    check_good_turn(system, client)


def test_an_unreachable_worker(system, client, base):
    """It fits and looks best, being idle with a large pool: the turn goes to it, and then to another."""
    request = introduction(system, base, worker_id="a-ghost")
    with grpc.insecure_channel(system.address) as channel:
        registry = registry_service_pb2_grpc.RegistryServiceStub(channel)
        for _ in range(10):  # on a slow machine the ghost may have missed its heartbeats before the turn comes
            registry.Register(request)
            result = client.generate("tiny", token_ids=PROMPT, max_tokens=2).result()
            system.check_greedy("tiny", PROMPT, result)
            assert result.route is not None and result.route.decode_worker in ("decode-0", "decode-1")
            lines = system.log("gateway").splitlines()
            if tried := any("attempt failed" in line and "a-ghost" in line for line in lines):
                break
    assert tried
    assert "a-ghost" not in system.workers()


# -- processes -------------------------------------------------------------------------------------------------------


def command(role: str, *flags: str) -> list[str]:
    return [sys.executable, "-m", "icarus.cli.main", "serve", role, *flags]


def num_refused(system: System) -> float:
    """Workers' introductions that did not fit, so far."""
    labels = {"method": "icarus.worker.v1.RegistryService/Register", "status": "FAILED_PRECONDITION"}
    return sum(system.gateway_metric("icarus_rpcs_total", **labels))


def test_a_worker_of_another_model_is_not_taken_in(system, client, tmp_path):
    other = tiny_llama(tmp_path / "other", seed=1)
    log = tmp_path / "log"
    flags = ("--model-path", str(other), "--model-name", "tiny", "--model-dtype", "float32")
    flags += ("--worker-gateways", system.address)
    with log.open("wb") as stream:
        process = subprocess.Popen(command("decode", *flags), stderr=stream)
    try:
        deadline = time.monotonic() + 60
        while "base_digest" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        before = num_refused(system)
        wait_until(lambda: num_refused(system) >= before + 2)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    text = log.read_text()
    assert base_digest(other) in text and "Traceback" not in text
    assert text.count("base_digest") == 1, "it says so once, and goes on trying"
    assert len(system.workers()) == 3
    check_good_turn(system, client)


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def rewrite(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes())) and None


STARTS = {
    "no tokenizer": ("gateway", without("tokenizer.json"), (), "has no tokenizer.json"),
    "a broken tokenizer": ("gateway", rewrite("tokenizer.json", lambda data: data[:50]), (), "tokenizer.json"),
    "no config": ("gateway", without("config.json"), (), "has no config.json"),
    "an unsupported architecture": (
        "decode",
        rewrite("config.json", lambda data: data.replace(b"LlamaForCausalLM", b"MambaForCausalLM")),
        (),
        "MambaForCausalLM",
    ),
    "truncated weights": ("prefill", rewrite("model.safetensors", lambda data: data[:-100]), (), "model.safetensors"),
    "an unknown dtype": ("decode", None, ("--model-dtype", "int3"), "int3"),
    "no model folder: gateway": ("gateway", None, ("--model-path", "/no/where"), "'/no/where'"),
    "no model folder: prefill": ("prefill", None, ("--model-path", "/no/where"), "'/no/where'"),
    "no model folder: decode": ("decode", None, ("--model-path", "/no/where"), "'/no/where'"),
    "an address that leads nowhere": ("decode", None, ("--worker-address", "0.0.0.0:0"), "0.0.0.0:0", "advertise"),
    "an adapter that is not there": ("decode", None, ("--worker-adapters", "x=/no/where"), "'x'", "/no/where"),
    "a setting that cannot be": ("gateway", None, ("--gateway-load-penalty-tokens", "-1"), "load_penalty_tokens is -1"),
    "an address that cannot be": ("gateway", None, ("--gateway-address", "256.1.1.1:1"), "256.1.1.1:1"),
}


@pytest.mark.parametrize(
    ("role", "spoil", "flags", "fragments"), [(a, b, c, d) for a, b, c, *d in STARTS.values()], ids=list(STARTS)
)
def test_a_process_that_cannot_start_says_why_in_one_line(base, tmp_path, role, spoil, flags, fragments):
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    if spoil:
        spoil(folder)
    done = subprocess.run(
        command(role, "--model-path", str(folder), *flags), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2, done.stderr
    *before, last = done.stderr.strip().splitlines()
    assert last.startswith("icarus: error: ") and all("level=info" in line for line in before), done.stderr
    for fragment in fragments:
        assert fragment in last


@pytest.mark.parametrize("role", ["gateway", "prefill", "decode"])
def test_a_taken_port(base, role):
    section = "gateway" if role == "gateway" else "worker"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        flags = ("--model-path", str(base), f"--{section}-address", address)
        done = subprocess.run(command(role, *flags), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    told = f"icarus: error: [{section}] address: cannot listen on {address}: Address already in use"
    assert told in done.stderr.splitlines()[-1]
