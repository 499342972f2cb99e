"""A client for commands that talk to a running gateway."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from icarus.client import Client
from icarus.errors import InvalidInputError, UnavailableError

_NOBODY_THERE = ("failed to connect", "Connection refused", "errors resolving", "DNS resolution failed")
"""What gRPC says where it reached nobody, and no gateway says of itself."""


@contextmanager
def connect(args: argparse.Namespace) -> Iterator[Client]:
    """The client that `--gateway`, `--tenant`, `--timeout`, `--tls` and `--header` describe."""
    credentials = grpc.ssl_channel_credentials() if args.tls else None
    metadata = [_header(text) for text in args.header]
    with Client(
        args.gateway, tenant=args.tenant, timeout=args.timeout, credentials=credentials, metadata=metadata
    ) as client:
        try:
            yield client
        except UnavailableError as error:
            if not any(words in str(error) for words in _NOBODY_THERE):
                raise
            hint = "is a gateway running there? 'icarus up' starts one, --gateway says where it is"
            raise UnavailableError(f"{error} ({hint})") from None


def _header(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidInputError(f"--header is {text!r}; it is NAME=VALUE")
    return name, value
