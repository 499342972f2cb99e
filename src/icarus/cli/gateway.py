"""A client for commands that talk to a running gateway."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from icarus.client import Client
from icarus.client.connection import reached_nobody
from icarus.errors import InvalidInputError, UnavailableError


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
            if not reached_nobody(error):
                raise
            hint = "is a gateway running there? 'icarus up' starts one, --gateway says where it is"
            raise UnavailableError(f"{error} ({hint})") from None


def _header(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidInputError(f"--header is {text!r}; it is NAME=VALUE")
    return name, value
