"""What callers get wrong is refused by name, before anything is sent."""

import math
import socket
from pathlib import Path

import grpc
import pytest
from client.scripted_gateway import ScriptedGateway

from icarus.client import AsyncClient, Client, RetryPolicy
from icarus.client.connection import check_address
from icarus.errors import FailedPreconditionError, InvalidInputError, UnavailableError
from icarus.rpc.server import make_server
from icarus.v1 import model_service_pb2 as model_pb2

WRONG = [
    ("model is None", lambda client: client.generate(None, "x")),
    ("text is 3", lambda client: client.generate("alpha", 3)),
    ("messages is {", lambda client: client.create_session(messages={"role": "user", "content": "hi"})),
    ("messages is 'hi'", lambda client: client.create_session(messages="hi")),
    ("a message has .* not 'hi'", lambda client: client.create_session(messages=["hi"])),
    ("max_tokens cannot be '5'", lambda client: client.generate("alpha", "x", max_tokens="5")),
    (
        r"max_tokens cannot be 10{12}: .* in \[-2\^31, 2\^31\)",
        lambda client: client.generate("alpha", "x", max_tokens=10**12),
    ),
    (r"seed cannot be -1: .* in \[0, 2\^64\)", lambda client: client.generate("alpha", "x", seed=-1)),
    (r"stop_token_ids cannot be \[-1\]: .* 2\^32\)", lambda client: client.generate("alpha", "x", stop_token_ids=[-1])),
    ("stop_token_ids cannot be 5", lambda client: client.generate("alpha", "x", stop_token_ids=5)),
    ("stop cannot be 5", lambda client: client.generate("alpha", "x", stop=5)),
    ("resume_from cannot be 10{12}", lambda client: client.generate("alpha", "x", resume_from=10**12)),
    ("min_delta_tokens cannot be 'x'", lambda client: client.generate("alpha", "x", min_delta_tokens="x")),
    ("turn_id is 7", lambda client: client.generate("alpha", "x", turn_id=7)),
    ("timeout is nan", lambda client: client.generate("alpha", "x", timeout=math.nan)),
    ("timeout is -1", lambda client: client.models(timeout=-1)),
    ("timeout is '5'", lambda client: client.models(timeout="5")),
    ("ttl_seconds cannot be 'x'", lambda client: client.create_session(ttl_seconds="x")),
    ("num_tokens cannot be 10{12}", lambda client: client.session("s0").fork(10**12)),
    ("session_id is None", lambda client: client.session(None)),
    ("workers is 'decode-0'", lambda client: client.load_adapter("alpha", "/a", workers="decode-0")),
    ("path is 3", lambda client: client.load_adapter("alpha", 3)),
    ("mode is .*not 3", lambda client: client.load_adapter("alpha", "/a", mode=3)),
    ("pinned cannot be 'yes'", lambda client: client.pin_adapter("alpha", "yes")),
    ("address is None", lambda client: type(client)(None)),
    ("tenant is 3", lambda client: type(client)("a:1", tenant=3)),
    ("keepalive_seconds is 4.9; it must be 5 or more", lambda client: type(client)("a:1", keepalive_seconds=4.9)),
    ("metadata has the name 'a b'", lambda client: type(client)("a:1", metadata=[("a b", "x")])),
    ("metadata is 5", lambda client: type(client)("a:1", metadata=5)),
    ("metadata is 'ab'", lambda client: type(client)("a:1", metadata="ab")),
    ("metadata has 'authorization'", lambda client: type(client)("a:1", metadata=["authorization"])),
    ("metadata has .*'a', 'b', 'c'", lambda client: type(client)("a:1", metadata=[("a", "b", "c")])),
    ("metadata is 5", lambda client: type(client)("a:1", metadata={"authorization": 5})),
    ("credentials is 'x'", lambda client: type(client)("a:1", credentials="x")),
    ("retry is 3", lambda client: type(client)("a:1", retry=3)),
    ("retry is None", lambda client: type(client)("a:1", retry=None)),
    ("keepalive_seconds is '20'", lambda client: type(client)("a:1", keepalive_seconds="20")),
    ("metadata x has a character", lambda client: type(client)("a:1", metadata=[("x", "caf\xe9\n")])),
]


@pytest.mark.parametrize(("words", "call"), WRONG)
def test_a_wrong_argument_is_named(gateway, words, call):
    with Client(gateway.address) as client, pytest.raises(InvalidInputError, match=words):
        call(client)
    assert gateway.requests == []


@pytest.mark.parametrize(("words", "call"), WRONG)
async def test_a_wrong_argument_is_named_for_asyncio(gateway, words, call):
    async with AsyncClient(gateway.address) as client:
        with pytest.raises(InvalidInputError, match=words):
            await call(client)
    assert gateway.requests == []


def test_the_client_for_asyncio_is_made_in_its_loop():
    with pytest.raises(FailedPreconditionError, match="running event loop"):
        AsyncClient("127.0.0.1:1")


def test_a_path_may_be_a_path(gateway):
    with Client(gateway.address) as client:
        client.load_adapter("alpha", Path("/adapters/alpha"))
    assert gateway.last(model_pb2.LoadAdapterRequest).path == "/adapters/alpha"


@pytest.mark.parametrize(
    "address", ["gateway:7080", "127.0.0.1:1", "[::1]:65535", "dns:///gateway:7080", "unix:/tmp/x"]
)
def test_addresses_that_are_taken(address):
    assert check_address(address) == address


@pytest.mark.parametrize(
    "address", ["", "localhost", "gateway:", ":7080", "gateway:0", "gateway:99999", "::1:7080", "http://a:7080", "a:x"]
)
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(InvalidInputError, match="HOST:PORT"):
        Client(address)


def test_metadata_may_be_a_mapping(gateway):
    with Client(gateway.address, metadata={"X-Team": "greenhouse"}) as client:
        client.models()
    assert gateway.calls[0][1]["x-team"] == "greenhouse"


@pytest.mark.parametrize("seconds", [10**9, 1e306])
def test_a_connection_may_be_pinged_next_to_never(gateway, seconds):
    with Client(gateway.address, keepalive_seconds=seconds) as client:
        assert client.models().names == ("base",)


@pytest.fixture
def no_proxy_answers(monkeypatch):
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:{}", "localhost:{}", "LOCALHOST:{}", "0.0.0.0:{}", "dns:localhost:{}", "dns:///127.0.0.1:{}",
        "ipv4:127.0.0.1:{}", "ipv4:///127.0.0.1:{}",
    ],
)  # fmt: skip
def test_a_local_address_is_reached_without_a_proxy(gateway, no_proxy_answers, address):
    with Client(address.format(gateway.address.rpartition(":")[2]), retry=RetryPolicy(retries=0)) as client:
        assert client.models().names == ("base",)


@pytest.mark.parametrize("address", ["[::]:{}", "[::1]:{}", "ipv6:[::1]:{}", "ipv6:%5B::1%5D:{}", "dns:[::1]:{}"])
def test_so_is_one_of_ipv6(no_proxy_answers, address):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no [::1]")
    with ScriptedGateway("[::1]:0") as gateway:
        port = gateway.address.rpartition(":")[2]
        with Client(address.format(port), retry=RetryPolicy(retries=0)) as client:
            assert client.models().names == ("base",)


def test_any_other_address_is_reached_through_the_proxy(no_proxy_answers):
    for address in ("127.example:7080", "localhost.example:7080", "dns:///192.0.2.1:7080"):
        with (
            Client(address, retry=RetryPolicy(retries=0), timeout=20) as client,
            pytest.raises(UnavailableError, match=r"ipv4:127\.0\.0\.1:1: Failed to connect"),
        ):
            client.models()


def test_answers_may_be_as_long_as_the_services_make_them(gateway):
    name = "x" * 5_000_000
    gateway.load(name)
    with Client(gateway.address) as client:
        assert name in client.models()


async def test_answers_may_be_long_for_asyncio(gateway):
    name = "x" * 5_000_000
    gateway.load(name)
    async with AsyncClient(gateway.address) as client:
        assert name in await client.models()


def test_credentials_and_metadata_go_with_every_call(tmp_path):
    """Over a Unix socket, which gRPC calls secure without certificates: so it sends a token there."""
    kind = grpc.LocalConnectionType.UDS
    credentials = grpc.composite_channel_credentials(
        grpc.local_channel_credentials(kind), grpc.access_token_call_credentials("secret")
    )
    options = {"credentials": credentials, "metadata": [("X-Team", "greenhouse")]}
    with ScriptedGateway(f"unix:{tmp_path}/socket", grpc.local_server_credentials(kind)) as gateway:
        with Client(gateway.address, **options) as client:
            client.models()
            with client.create_session(token_ids=[1]).generate("alpha", "endless") as stream:
                next(stream)
        assert [method for method, _ in gateway.calls] == ["ListModels", "CreateSession", "GenerateTurn", "CancelTurn"]
        for _, metadata in gateway.calls:
            assert (metadata["authorization"], metadata["x-team"]) == ("Bearer secret", "greenhouse")


async def test_credentials_and_metadata_for_asyncio(tmp_path):
    kind = grpc.LocalConnectionType.UDS
    credentials = grpc.local_channel_credentials(kind)
    with ScriptedGateway(f"unix:{tmp_path}/socket", grpc.local_server_credentials(kind)) as gateway:
        async with AsyncClient(gateway.address, credentials=credentials, metadata=[("x-team", "a")]) as client:
            await client.models()
            async with client.generate("alpha", "endless") as stream:
                await anext(stream)
        assert [method for method, _ in gateway.calls] == ["ListModels", "Generate", "CancelTurn"]
        assert {metadata["x-team"] for _, metadata in gateway.calls} == {"a"}


async def test_another_service_is_no_gateway():
    server = make_server("127.0.0.1:0", [])
    await server.start()
    async with AsyncClient(server.address) as client:
        with pytest.raises(FailedPreconditionError, match=f"{server.address} is no Icarus gateway"):
            await client.models()
        with pytest.raises(FailedPreconditionError, match="is no Icarus gateway"):
            await client.generate("alpha", "hi").result()
    await server.drain(0)


def test_errors_name_the_gateway(gateway):
    with Client(gateway.address) as client, pytest.raises(InvalidInputError, match=f"^{gateway.address}: max_tokens"):
        client.generate("alpha", "invalid").result()
