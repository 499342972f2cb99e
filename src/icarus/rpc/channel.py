"""Channels between services."""

import grpc.aio

from icarus.types import MAX_MESSAGE_BYTES

COMMON_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)


def open_channel(address: str) -> grpc.aio.Channel:
    """A channel to `host:port` that comes back soon after its peer does and never goes through an HTTP proxy."""
    return grpc.aio.insecure_channel(
        address,
        options=(
            *COMMON_OPTIONS,
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 5_000),  # in truth the limit for one attempt to connect
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.dns_min_time_between_resolutions_ms", 1000),  # a container that was made anew has another address
            ("grpc.enable_http_proxy", 0),
            ("grpc.use_local_subchannel_pool", 1),
        ),
    )
