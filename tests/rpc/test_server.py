"""A real server and a real channel; the servicer raises what the test says."""

import asyncio
import logging
import signal
import subprocess
import sys
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from waiting import eventually

from icarus import errors
from icarus.rpc.call_limit import CallLimitInterceptor
from icarus.rpc.channel import open_channel
from icarus.rpc.logs import KeyValueFormatter
from icarus.rpc.server import Service, make_server
from icarus.rpc.status import code_of, error_from_rpc
from icarus.v1 import generation_service_pb2, generation_service_pb2_grpc
from icarus.worker.v1 import (
    decode_service_pb2,
    decode_service_pb2_grpc,
    registry_service_pb2,
    registry_service_pb2_grpc,
)

NAMES = {name: cls for name, cls in vars(errors).items() if isinstance(cls, type)}


def raise_named(name: str) -> None:
    if name == "bug":
        raise ZeroDivisionError("secret")
    if name.startswith("long "):
        raise errors.NotFoundError(name)
    if name in NAMES:
        raise NAMES[name](f"{name}: try again", *((2.5,) if name == "OverloadedError" else ()))


class Registry(registry_service_pb2_grpc.RegistryServiceServicer):
    async def Heartbeat(self, request, context):
        raise_named(request.worker_id)
        return registry_service_pb2.HeartbeatResponse()


class Generation(generation_service_pb2_grpc.GenerationServiceServicer):
    def __init__(self):
        self.closed = asyncio.Event()

    async def Generate(self, request, context):
        try:
            yield generation_service_pb2.GenerateResponse()
            raise_named(request.model)
            if request.model == "wait":
                await asyncio.sleep(60)
        finally:
            self.closed.set()


class Decode(decode_service_pb2_grpc.DecodeServiceServicer):
    async def Decode(self, request_iterator, context):
        async for request in request_iterator:
            raise_named(request.begin.adapter)
            yield decode_service_pb2.DecodeResponse()


class Echo:
    """None of our services has a method that takes a stream and answers once."""

    async def join(self, request_iterator, context):
        return health_pb2.HealthCheckRequest(service="".join([request.service async for request in request_iterator]))

    def add_to(self, server):
        message = health_pb2.HealthCheckRequest
        join = grpc.stream_unary_rpc_method_handler(self.join, message.FromString, message.SerializeToString)
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("icarus.test.Echo", {"Join": join})])


@asynccontextmanager
async def running():
    generation = Generation()
    server = make_server(
        "127.0.0.1:0",
        [
            Service.of(Registry()),
            Service.of(generation),
            Service.of(Decode()),
            Service(health.SERVICE_NAME, Echo.add_to, Echo()),
        ],
    )
    await server.start()
    try:
        async with open_channel(server.address) as channel:
            yield server, channel, generation
    finally:
        await server.drain(0)


async def call_unary_unary(channel, name):
    await registry_service_pb2_grpc.RegistryServiceStub(channel).Heartbeat(
        registry_service_pb2.HeartbeatRequest(worker_id=name)
    )


async def call_unary_stream(channel, name):
    stub = generation_service_pb2_grpc.GenerationServiceStub(channel)
    async for _ in stub.Generate(generation_service_pb2.GenerateRequest(model=name)):
        pass


async def call_stream_stream(channel, name):
    async def requests():
        yield decode_service_pb2.DecodeRequest(begin=decode_service_pb2.BeginTurn(adapter=name))

    async for _ in decode_service_pb2_grpc.DecodeServiceStub(channel).Decode(requests()):
        pass


CALLS = pytest.mark.parametrize("call", [call_unary_unary, call_unary_stream, call_stream_stream])


@CALLS
async def test_errors_cross_the_wire(call):
    async with running() as (_, channel, _):
        await call(channel, "fine")
        for name, cls in NAMES.items():
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(channel, name)
            assert caught.value.code() is code_of(cls("x"))
            error = error_from_rpc(caught.value, "worker d1")
            assert str(error) == f"worker d1: {name}: try again"
            if caught.value.code() is not grpc.StatusCode.INTERNAL:
                assert type(error) is cls
            if isinstance(error, errors.OverloadedError):
                assert error.retry_delay_seconds == 2.5


@CALLS
@pytest.mark.parametrize("character", ["a", "\u20ac"])
async def test_a_long_message_keeps_its_status(call, character):
    """Headers have room for 8 KiB."""
    async with running() as (_, channel, _):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, "long " + character * 20_000)
    error = error_from_rpc(caught.value)
    assert type(error) is errors.NotFoundError
    assert str(error).startswith("long " + character * 100) and str(error).endswith(character + "...")


@CALLS
async def test_bugs_are_logged_and_not_told(call, caplog):
    async with running() as (_, channel, _):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, "bug")
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(caught.value.details())
    assert "ZeroDivisionError: secret" in caplog.text


async def test_cancellation_reaches_the_handler():
    async with running() as (_, channel, generation):
        stub = generation_service_pb2_grpc.GenerationServiceStub(channel)
        stream = stub.Generate(generation_service_pb2.GenerateRequest(model="wait"))
        await stream.read()
        stream.cancel()
        await asyncio.wait_for(generation.closed.wait(), 5)


async def test_a_dead_peer_is_unavailable():
    async with open_channel("127.0.0.1:1") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call_unary_unary(channel, "fine")
    assert isinstance(error_from_rpc(caught.value), errors.UnavailableError)


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (grpc.StatusCode.INTERNAL, "RST_STREAM (Received RST_STREAM with error code 2)"),
        (grpc.StatusCode.UNKNOWN, "Received RST_STREAM with error code 1"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Received RST_STREAM with error code 11"),
        (grpc.StatusCode.INTERNAL, "Data frame with END_STREAM flag received"),
    ],
)
def test_a_stream_that_was_reset_on_its_way_is_unavailable(code, details):
    nothing = grpc.aio.Metadata()
    assert isinstance(error_from_rpc(grpc.aio.AioRpcError(code, nothing, nothing, details)), errors.UnavailableError)


def test_a_call_that_the_other_side_cancelled_is_unavailable():
    nothing = grpc.aio.Metadata()
    error = grpc.aio.AioRpcError(grpc.StatusCode.CANCELLED, nothing, nothing, "Cancelling all calls")
    assert isinstance(error_from_rpc(error), errors.UnavailableError)


async def test_a_message_beyond_the_limit_is_bad_input():
    async with running() as (_, channel, _):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call_unary_unary(channel, "x" * (33 * 2**20))
    assert isinstance(error_from_rpc(caught.value), errors.InvalidInputError)


BAD_TEXT = b"\xff\xfe"


@pytest.mark.parametrize(
    ("kind", "method", "data", "said"),
    [
        (
            "unary_unary",
            "/icarus.worker.v1.RegistryService/Heartbeat",
            b"\x0a\x02" + BAD_TEXT,
            "worker_id is not valid",
        ),
        ("unary_stream", "/icarus.v1.GenerationService/Generate", b"\x1a\x02" + BAD_TEXT, "model is not valid UTF-8"),
        (
            "unary_stream",
            "/icarus.v1.GenerationService/Generate",
            b"\x22\x04\x12\x02" + BAD_TEXT,
            "content.text is not",
        ),
        (
            "stream_stream",
            "/icarus.worker.v1.DecodeService/Decode",
            b"\x0a\x04\x2a\x02" + BAD_TEXT,
            "begin.adapter is not",
        ),
        ("stream_unary", "/icarus.test.Echo/Join", b"\x0a\x02" + BAD_TEXT, "HealthCheckRequest: service is not valid"),
        (
            "unary_unary",
            "/icarus.worker.v1.RegistryService/Heartbeat",
            b"\x0a\x99",
            "not a readable icarus.worker.v1.Heart",
        ),
        ("unary_unary", "/grpc.health.v1.Health/Check", b"\x0a\x02" + BAD_TEXT, "service is not valid UTF-8"),
    ],
)
async def test_what_does_not_parse_is_bad_input(kind, method, data, said):
    async with running() as (_, channel, _):
        call = getattr(channel, kind)(method)
        call = call(iter([data]) if kind.startswith("stream") else data)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await (call if kind.endswith("unary") else call.read())
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert said in str(caught.value.details())


async def test_taken_port():
    async with running() as (server, _, _):
        with pytest.raises(errors.ConfigError, match=rf"\[gateway\] address: cannot listen on {server.address}"):
            make_server(server.address, [], setting="[gateway] address")


async def test_health_and_reflection():
    async with running() as (server, channel, _):
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="icarus.v1.GenerationService"))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING

        async def requests():
            yield reflection_pb2.ServerReflectionRequest(list_services="")

        replies = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(requests())
        listed = {service.name for service in (await replies.read()).list_services_response.service}
        assert {"icarus.v1.GenerationService", "grpc.health.v1.Health"} <= listed
        drain = asyncio.create_task(server.drain(5))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        await drain


async def test_calls_beyond_the_limit_are_refused():
    exempt = ["icarus.worker.v1.RegistryService/Heartbeat"]
    limit = CallLimitInterceptor(2, "[test] max_calls", exempt)
    server = make_server("127.0.0.1:0", [Service.of(Generation()), Service.of(Registry())], limit=limit)
    await server.start()
    try:
        async with open_channel(server.address) as channel:
            generation = generation_service_pb2_grpc.GenerationServiceStub(channel)
            held = [generation.Generate(generation_service_pb2.GenerateRequest(model="wait")) for _ in range(2)]
            for call in held:
                await call.read()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call_unary_stream(channel, "fine")
            error = error_from_rpc(caught.value)
            assert isinstance(error, errors.OverloadedError) and "[test] max_calls allows (2)" in str(error)
            await call_unary_unary(channel, "fine")
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            held[0].cancel()
            await eventually(lambda: limit.num_calls == 1)
            with pytest.raises(grpc.aio.AioRpcError):
                await call_unary_stream(channel, "NotFoundError")
            await call_unary_stream(channel, "fine")
            held[1].cancel()
    finally:
        await server.drain(0)


SERVE = """
import asyncio
from icarus.rpc.server import make_server, serve_until_signal

async def main():
    server, helper = make_server("127.0.0.1:0", []), make_server("127.0.0.1:0", [])
    print(server.address, helper.address, flush=True)
    await serve_until_signal(server, grace_seconds=60, helpers=[helper])

asyncio.run(main())
print("drained")
"""


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
async def test_signals_drain(which):
    """A call under way holds the server, and with it its helper, for which no call counts."""
    process = subprocess.Popen([sys.executable, "-c", SERVE], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        address, helper_address = process.stdout.readline().split()
        async with open_channel(address) as channel, open_channel(helper_address) as helper_channel:
            health, helper_health = map(health_pb2_grpc.HealthStub, (channel, helper_channel))
            watch = health.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=30)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            helper_watch = helper_health.Watch(health_pb2.HealthCheckRequest(), timeout=30)
            assert (await helper_watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            process.send_signal(which)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            answer = await helper_health.Check(health_pb2.HealthCheckRequest(), timeout=30)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            watch.cancel()
            assert process.communicate(timeout=30)[0] == "drained\n" and process.returncode == 0
    finally:
        process.kill()
        process.communicate()


def test_log_lines():
    record = logging.makeLogRecord(
        {"name": "a.b", "levelname": "INFO", "msg": "turn done", "tokens": 3, "path": 'a "b"'}
    )
    line = KeyValueFormatter().format(record)
    assert line.endswith(r'level=info logger=a.b msg="turn done" tokens=3 path="a \"b\""')
    assert "\n" not in KeyValueFormatter().format(logging.makeLogRecord({"msg": "two\nlines"}))
    record = logging.makeLogRecord({"msg": "m", "model": "x" * 100_000})
    assert KeyValueFormatter().format(record).endswith('x... (100000 characters)"')
    assert len(KeyValueFormatter().format(record)) < 1200
