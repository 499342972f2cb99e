"""The stubs of the public API over one channel, sync or asyncio alike."""

from typing import Any

from icarus.v1 import (
    cluster_service_pb2_grpc,
    generation_service_pb2_grpc,
    model_service_pb2_grpc,
    session_service_pb2_grpc,
)

DEFAULT_ADDRESS = "127.0.0.1:7080"
_LOOPBACK = ("127.", "localhost:", "[::1]:")


class Stubs:
    """One stub a service. `channel` is a grpc.Channel or a grpc.aio.Channel."""

    def __init__(self, channel: Any):
        self.sessions = session_service_pb2_grpc.SessionServiceStub(channel)
        self.generation = generation_service_pb2_grpc.GenerationServiceStub(channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(channel)
        self.cluster = cluster_service_pb2_grpc.ClusterServiceStub(channel)


def channel_options(address: str) -> list[tuple[str, int]]:
    """Quick to see that a gateway went and that it is back; loopback calls keep off the environment's HTTP proxy."""
    options = [
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]
    return [*options, ("grpc.enable_http_proxy", 0)] if address.startswith(_LOOPBACK) else options
