"""The stubs of the public API over one channel, sync or asyncio alike."""

from typing import Any

from icarus.v1 import (
    cluster_service_pb2_grpc,
    generation_service_pb2_grpc,
    model_service_pb2_grpc,
    session_service_pb2_grpc,
)

DEFAULT_ADDRESS = "127.0.0.1:7080"
DEFAULT_KEEPALIVE_SECONDS = 20.0
FAREWELL_SECONDS = 1.0
"""What a closing client waits at most until the gateway knows which turns it has given up."""
_LOOPBACK = ("127.", "localhost:", "[::1]:")


class Stubs:
    """One stub a service. `channel` is a grpc.Channel or a grpc.aio.Channel."""

    def __init__(self, channel: Any):
        self.sessions = session_service_pb2_grpc.SessionServiceStub(channel)
        self.generation = generation_service_pb2_grpc.GenerationServiceStub(channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(channel)
        self.cluster = cluster_service_pb2_grpc.ClusterServiceStub(channel)


def channel_options(address: str, keepalive_seconds: float = DEFAULT_KEEPALIVE_SECONDS) -> list[tuple[str, int]]:
    """Quick to see that a gateway went and that it is back; loopback calls keep off the environment's HTTP proxy.

    A connection is pinged whether or not calls are under way, so that proxies on the way see traffic, and one that
    dropped it without a word is noticed.
    """
    options = [
        ("grpc.keepalive_time_ms", int(keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", int(keepalive_seconds * 500)),
        # gRPC sends no ping while another one, such as those that measure bandwidth, has no answer: 60 s by default.
        ("grpc.http2.ping_timeout_ms", int(keepalive_seconds * 500)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 5_000),  # in truth the limit for one attempt to connect
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]
    return [*options, ("grpc.enable_http_proxy", 0)] if address.startswith(_LOOPBACK) else options
