"""Calls by method and status: the metrics of every gRPC server, and the interceptor that counts them."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from prometheus_client import CollectorRegistry, Counter, Histogram

from icarus.rpc.handlers import Around, SurroundingInterceptor

SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""From a token on a fast device to a long turn."""


@dataclass(frozen=True)
class RpcMetrics:
    """Labels: `method` ("icarus.v1.SessionService/GenerateTurn"), `status` (a gRPC code's name)."""

    calls: Counter
    seconds: Histogram

    @classmethod
    def register(cls, registry: CollectorRegistry) -> "RpcMetrics":
        return cls(
            calls=Counter("icarus_rpcs", "Calls that ended.", ["method", "status"], registry=registry),
            seconds=Histogram(
                "icarus_rpc_seconds",
                "How long calls took; a stream counts to its end.",
                ["method"],
                registry=registry,
                buckets=SECONDS_BUCKETS,
            ),
        )


class MetricsInterceptor(SurroundingInterceptor):
    """Counts the calls of the methods that the server has: another name is the caller's invention. Comes before what
    turns errors into statuses."""

    def __init__(self, metrics: RpcMetrics):
        self._metrics = metrics

    def around(self, method: str) -> Around:
        return lambda context: self._counted(method, context)

    @asynccontextmanager
    async def _counted(self, method: str, context: Any) -> AsyncIterator[None]:
        started = time.monotonic()
        status = grpc.StatusCode.OK.name
        try:
            yield
        except grpc.aio.AbortError:
            status = _aborted_with(context)
            raise
        except Exception:
            status = grpc.StatusCode.UNKNOWN.name
            raise
        except BaseException:  # CancelledError, or GeneratorExit where the caller went during a message
            status = grpc.StatusCode.CANCELLED.name
            raise
        finally:
            self._metrics.calls.labels(method, status).inc()
            self._metrics.seconds.labels(method).observe(time.monotonic() - started)


def _aborted_with(context: Any) -> str:
    code = context.code()
    return code.name if isinstance(code, grpc.StatusCode) else grpc.StatusCode(code).name
