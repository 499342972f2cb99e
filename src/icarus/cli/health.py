"""`icarus health`: whether a server serves, by the standard health service. For probes: containers', supervisors'."""

import argparse
import sys
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from icarus.client.connection import channel_options, check_address
from icarus.errors import UnavailableError

SERVING = "SERVING"


def run(args: argparse.Namespace) -> int:
    """1 unless it serves."""
    status = ask_health(args.address, args.timeout)
    sys.stdout.write(f"{args.address} {status}\n")
    return 0 if status == SERVING else 1


def ask_health(address: str, timeout_seconds: float) -> str:
    """What the gateway or worker at `address` says of itself: SERVING, NOT_SERVING.

    Raises UnavailableError where nobody answers in time, and InvalidInputError for what is no address.
    """
    check_address(address)
    with grpc.insecure_channel(address, options=channel_options(address)) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its attributes are made at run time
        try:
            status = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_seconds).status
        except grpc.RpcError as error:
            call: Any = error
            raise UnavailableError(f"{address}: {call.code().name}: {call.details()}") from None
    return health_pb2.HealthCheckResponse.ServingStatus.Name(status)
