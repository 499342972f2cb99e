"""`icarus health`: whether a server serves, by the standard health service. For probes: containers', supervisors'."""

import argparse
import sys
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from icarus.client.connection import Target
from icarus.errors import UnavailableError

SERVING = "SERVING"


def run(args: argparse.Namespace) -> int:
    """1 unless it serves."""
    status = ask_health(Target(args.address, timeout=args.timeout))
    sys.stdout.write(f"{args.address} {status}\n")
    return 0 if status == SERVING else 1


def ask_health(target: Target) -> str:
    """What the gateway or worker there says of itself: SERVING, NOT_SERVING.

    Raises UnavailableError where nobody answers within the target's timeout.
    """
    with target.open_channel(grpc) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its attributes are made at run time
        try:
            request = health_pb2.HealthCheckRequest()
            seconds = target.attempts("health of", None).seconds_left()
            status = stub.Check(request, timeout=seconds, metadata=target.metadata).status
        except grpc.RpcError as error:
            call: Any = error
            raise UnavailableError(f"{target.address}: {call.code().name}: {call.details()}") from None
    return health_pb2.HealthCheckResponse.ServingStatus.Name(status)
