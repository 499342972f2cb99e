"""The endpoint, and the interceptor behind icarus_rpcs_total."""

from urllib.request import urlopen

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from waiting import eventually

from icarus.errors import ConfigError
from icarus.rpc.channel import open_channel
from icarus.rpc.listen import hold_port
from icarus.rpc.metrics import MetricsInterceptor, RpcMetrics
from icarus.rpc.metrics_server import MetricsServer, make_registry
from icarus.rpc.server import make_server


def test_it_answers_and_stops_answering():
    with MetricsServer("127.0.0.1:0", make_registry()) as server:
        url = f"http://{server.address}/metrics"
        with urlopen(url, timeout=5) as answer:
            assert b"process_resident_memory_bytes" in answer.read()
    with pytest.raises(OSError):
        urlopen(url, timeout=5)


def test_its_address_on_ipv6_is_one_of_a_url():
    try:
        hold_port("[::1]:0", "a test").close()
    except ConfigError:
        pytest.skip("this machine has no [::1]")
    with MetricsServer("[::1]:0", make_registry()) as server, urlopen(f"http://{server.address}/metrics", timeout=5):
        assert server.address.startswith("[::1]:")


def test_addresses_that_cannot_be_served():
    with (
        MetricsServer("127.0.0.1:0", make_registry()) as server,
        pytest.raises(ConfigError, match=f"cannot listen on {server.address}: Address already in use"),
    ):
        MetricsServer(server.address, make_registry()).__enter__()
    with pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1:99999"):
        MetricsServer("127.0.0.1:99999", make_registry()).__enter__()
    with MetricsServer("", make_registry()) as server:
        assert server.address == ""


def calls_of(registry) -> dict[tuple[str, ...], float]:
    samples = (sample for family in registry.collect() for sample in family.samples)
    return {tuple(s.labels.values()): s.value for s in samples if s.name == "icarus_rpcs_total"}


async def test_calls_are_counted_by_status_and_unknown_methods_are_not():
    registry = make_registry()
    server = make_server("127.0.0.1:0", [], [MetricsInterceptor(RpcMetrics.register(registry))])
    check, watch = "grpc.health.v1.Health/Check", "grpc.health.v1.Health/Watch"
    await server.start()
    try:
        async with open_channel(server.address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            await stub.Check(health_pb2.HealthCheckRequest())
            watching = stub.Watch(health_pb2.HealthCheckRequest())
            assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
            watching.cancel()
            for call in (
                stub.Check(health_pb2.HealthCheckRequest(service="nobody")),
                channel.unary_unary("/icarus.v1.Nobody/Nothing")(b""),
            ):
                with pytest.raises(grpc.aio.AioRpcError):
                    await call
            await eventually(lambda: (watch, "CANCELLED") in calls_of(registry))
    finally:
        await server.drain(0)
    assert calls_of(registry) == {(check, "OK"): 1, (check, "NOT_FOUND"): 1, (watch, "CANCELLED"): 1}
