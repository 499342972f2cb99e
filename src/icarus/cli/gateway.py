"""A client for commands that talk to a running gateway."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from icarus.client import Client
from icarus.errors import UnavailableError


@contextmanager
def connect(args: argparse.Namespace) -> Iterator[Client]:
    """The client that `--gateway`, `--tenant` and `--timeout` describe."""
    with Client(args.gateway, tenant=args.tenant, timeout=args.timeout) as client:
        try:
            yield client
        except UnavailableError as error:
            hint = "is a gateway running there? 'icarus up' starts one, --gateway says where it is"
            raise UnavailableError(f"{args.gateway}: {error} ({hint})") from None
