"""How to reach one gateway: what the sync and the asyncio client share of it."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from icarus.address import CALLED, can_be_called
from icarus.client.arguments import check_finite, check_seconds, check_text
from icarus.client.retry import DEFAULT_RETRY, Attempts, RetryPolicy
from icarus.errors import FailedPreconditionError, IcarusError, InvalidInputError, UnavailableError
from icarus.rpc.status import error_from_rpc
from icarus.tracing import Metadata
from icarus.types import DEFAULT_TENANT, MAX_MESSAGE_BYTES, MIN_KEEPALIVE_SECONDS
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
_MAX_MILLISECONDS = 2**31 - 1
"""To gRPC: never."""
_LOCAL = re.compile(
    r"((dns|ipv4|ipv6):(//[^/]*/)?)?"
    r"(127\.[\d.]+|0\.0\.0\.0|localhost|(\[|%5b)::(1|ffff:127\.[\d.]+)?(\]|%5d))(:|$)",
    re.IGNORECASE,
)
"""This machine's own addresses that it can be known by, in every form that gRPC takes."""
_NOBODY_THERE = ("failed to connect", "Connection refused", "errors resolving", "DNS resolution failed")
"""What gRPC says where it reached nobody."""
_DETAILS = "grpc-status-details-bin"
"""What the gateway sends with every status of its own, and gRPC with none that it makes up."""
_HEADER_NAME = re.compile(r"[0-9a-z_.-]+")
_HEADER_VALUE = re.compile(r"[ -~]*")

Headers = Mapping[str, str] | Iterable[tuple[str, str]]
"""Names and values."""


class Stubs:
    """One stub a service. `channel` is a grpc.Channel or a grpc.aio.Channel."""

    def __init__(self, channel: Any):
        self.sessions = session_service_pb2_grpc.SessionServiceStub(channel)
        self.generation = generation_service_pb2_grpc.GenerationServiceStub(channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(channel)
        self.cluster = cluster_service_pb2_grpc.ClusterServiceStub(channel)


@dataclass(frozen=True)
class Target:
    """A gateway, for whom, and how patiently. Raises InvalidInputError naming what cannot be."""

    address: str
    tenant: str = DEFAULT_TENANT
    timeout: float | None = None
    retry: RetryPolicy = DEFAULT_RETRY
    keepalive_seconds: float = DEFAULT_KEEPALIVE_SECONDS
    credentials: grpc.ChannelCredentials | None = None
    metadata: Metadata = ()
    """Sent with every call; of `parse_headers`."""
    on_this_machine: bool = False
    """Whatever its address: the environment's HTTP proxy is not for it."""

    def __post_init__(self) -> None:
        check_address(self.address)
        check_text("tenant", self.tenant)
        check_seconds("timeout", self.timeout)
        if not isinstance(self.retry, RetryPolicy):
            raise InvalidInputError(f"retry is {self.retry!r}; it is a RetryPolicy")
        if check_finite("keepalive_seconds", self.keepalive_seconds) < MIN_KEEPALIVE_SECONDS:
            raise InvalidInputError(
                f"keepalive_seconds is {self.keepalive_seconds!r}; it must be {MIN_KEEPALIVE_SECONDS} or more: a "
                "gateway disconnects who pings more often"
            )
        if not isinstance(self.credentials, grpc.ChannelCredentials | None):
            raise InvalidInputError(
                f"credentials is {self.credentials!r}; it is what grpc.ssl_channel_credentials() makes, or None"
            )

    def open_channel(self, library: Any) -> Any:
        """A channel of `grpc` or of `grpc.aio`."""
        direct = self.on_this_machine or _LOCAL.match(self.address) is not None
        options = channel_options(self.keepalive_seconds, use_proxy=not direct)
        if self.credentials is None:
            return library.insecure_channel(self.address, options=options)
        return library.secure_channel(self.address, self.credentials, options=options)

    def attempts(self, what: str, timeout: float | None) -> Attempts:
        """Of a call, `what` ("turn 7 at") in messages. `timeout` None takes this target's."""
        timeout = self.timeout if timeout is None else check_seconds("timeout", timeout)
        return Attempts(self.retry, timeout, f"{what} {self.address}")

    def error_of(self, error: Any) -> IcarusError:
        """What a call's status means here."""
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            return FailedPreconditionError(
                f"{self.address} is no Icarus gateway (a worker's or another service's port?), or is of another release"
            )
        return error_from_rpc(error, self.address)


def reached_nobody(error: IcarusError) -> bool:
    """Whether a call was never sent: gRPC found no one at the address."""
    return isinstance(error, UnavailableError) and any(words in str(error) for words in _NOBODY_THERE)


def is_answer(error: Any) -> bool:
    """Whether a call's status is the gateway's own, and not gRPC's word for a connection that broke."""
    return any(name == _DETAILS for name, _ in error.trailing_metadata() or ())


def closed_error() -> IcarusError:
    """For calls of a client that was closed."""
    return FailedPreconditionError("this client is closed; make another")


def check_address(address: str) -> str:
    """The address. Raises InvalidInputError for what is neither HOST:PORT nor a URI as gRPC takes them."""
    if not can_be_called(check_text("address", address)):
        raise InvalidInputError(f"address is {address!r}; it is {CALLED}")
    return address


def parse_headers(metadata: Headers) -> Metadata:
    """As HTTP/2 takes them: names in lower case. Raises InvalidInputError for what is no header of a caller's."""
    pairs: Any = metadata.items() if isinstance(metadata, Mapping) else metadata
    if isinstance(pairs, str) or not isinstance(pairs, Iterable):
        raise InvalidInputError(f"metadata is {metadata!r}; it is a mapping, or pairs, of names and values")
    return tuple(map(_header, pairs))


def _header(pair: Any) -> tuple[str, str]:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise InvalidInputError(f"metadata has {pair!r}; it is a mapping, or pairs, of names and values")
    name, value = pair
    check_text("metadata", name)
    check_text("metadata", value)
    if not _HEADER_NAME.fullmatch(name.lower()) or name.lower().startswith("grpc-") or name.lower().endswith("-bin"):
        raise InvalidInputError(f"metadata has the name {name!r}; it takes letters, digits and _ . - of an HTTP header")
    if not _HEADER_VALUE.fullmatch(value):
        raise InvalidInputError(f"metadata {name} has a character that is not printable ASCII; encode it, as base64")
    return name.lower(), value


def channel_options(keepalive_seconds: float, use_proxy: bool) -> list[tuple[str, int]]:
    """Quick to see that a gateway went and that it is back. `use_proxy`: the environment's, for HTTP, if it names one.

    A connection is pinged whether or not calls are under way, so that proxies on the way see traffic, and one that
    dropped it without a word is noticed.
    """
    keepalive_ms = int(min(keepalive_seconds * 1000, _MAX_MILLISECONDS))
    return [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.enable_http_proxy", int(use_proxy)),
        ("grpc.keepalive_time_ms", keepalive_ms),
        ("grpc.keepalive_timeout_ms", keepalive_ms // 2),
        # gRPC sends no ping while another one, such as those that measure bandwidth, has no answer: 60 s by default.
        ("grpc.http2.ping_timeout_ms", keepalive_ms // 2),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 5_000),  # in truth the limit for one attempt to connect
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.dns_min_time_between_resolutions_ms", 2_000),  # its address may be another one by then
    ]
