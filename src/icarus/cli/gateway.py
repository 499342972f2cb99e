"""A client for commands that talk to a running gateway."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from icarus.client import Client
from icarus.client.connection import parse_headers, reached_nobody
from icarus.errors import InvalidInputError, UnavailableError

_NO_HANDSHAKE = "handshake failed"
_NO_TLS = "it does not speak TLS: leave out --tls; or it has a certificate that this machine does not trust"
_NOBODY = "is a gateway running there? 'icarus up' starts one, --gateway says where it is"


def client_options(args: argparse.Namespace) -> dict[str, Any]:
    """What `--tenant`, `--timeout`, `--tls` and `--header` say, as a client's arguments, without what was not given.

    Raises InvalidInputError where there is no `--gateway` for it.
    """
    options = {
        "tenant": args.tenant,
        "timeout": args.timeout,
        "credentials": grpc.ssl_channel_credentials() if args.tls else None,
        "metadata": parse_headers([_header(text) for text in args.header]) or None,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if given and args.gateway is None:
        raise InvalidInputError("--tenant, --timeout, --tls and --header are for a gateway that runs; give --gateway")
    return given


@contextmanager
def connect(args: argparse.Namespace) -> Iterator[Client]:
    """The client that `--gateway`, `--tenant`, `--timeout`, `--tls` and `--header` describe."""
    with Client(args.gateway, **client_options(args)) as client:
        try:
            yield client
        except UnavailableError as error:
            if not reached_nobody(error):
                raise
            raise UnavailableError(f"{error} ({advice_for(error)})") from None


def advice_for(error: UnavailableError) -> str:
    """What to do where no gateway answered."""
    return _NO_TLS if _NO_HANDSHAKE in str(error) else _NOBODY


def _header(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidInputError(f"--header is {text!r}; it is NAME=VALUE")
    return name, value
