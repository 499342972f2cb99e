"""The shell around every service: listening, health, reflection, graceful stop."""

import asyncio
import gc
import importlib
import logging
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from icarus.rpc.call_limit import CallLimitInterceptor
from icarus.rpc.channel import COMMON_OPTIONS
from icarus.rpc.listen import cannot_listen, hold_port
from icarus.rpc.status import ErrorInterceptor
from icarus.rpc.tracing import TraceContextInterceptor
from icarus.types import MIN_KEEPALIVE_SECONDS

log = logging.getLogger(__name__)

Work = Callable[[], Awaitable[None]]

_SERVER_OPTIONS = (
    *COMMON_OPTIONS,
    ("grpc.so_reuseport", 0),  # with it a second server on the same port starts without a word
    ("grpc.http2.min_ping_interval_without_data_ms", MIN_KEEPALIVE_SECONDS * 1000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", MIN_KEEPALIVE_SECONDS * 1000),
)


@dataclass(frozen=True)
class Service:
    """A servicer, the name of its service (`icarus.v1.SessionService`), and what adds it to a server."""

    name: str
    add: Callable[[Any, grpc.aio.Server], None]
    servicer: Any

    @classmethod
    def of(cls, servicer: Any) -> "Service":
        """For an object whose class extends a generated one, `SessionServiceServicer` of `..._pb2_grpc`, say."""
        generated = next(base for base in type(servicer).__mro__ if base.__module__.endswith("_pb2_grpc"))
        messages = importlib.import_module(generated.__module__.removesuffix("_grpc"))
        descriptor = messages.DESCRIPTOR.services_by_name[generated.__name__.removesuffix("Servicer")]
        add = getattr(importlib.import_module(generated.__module__), f"add_{generated.__name__}_to_server")
        return cls(descriptor.full_name, add, servicer)


class Server:
    """A gRPC server that is bound (`port`) but not started. Made by `make_server`."""

    def __init__(self, server: grpc.aio.Server, health_servicer: Any, names: Sequence[str], host: str, port: int):
        self._server = server
        self._health = health_servicer
        self._names = names
        self.port = port
        self.address = f"{host}:{port}"

    async def start(self) -> None:
        """Answers calls from here on; health says SERVING."""
        await self._server.start()
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    async def drain(self, grace_seconds: float, prepare: Work | None = None, settle: Work | None = None) -> None:
        """Health says NOT_SERVING, new calls are refused, running ones have `grace_seconds` to end. Within the grace,
        `prepare` is waited for first (until it is done, calls are answered as before), and `settle` once they ended."""
        await self._health.enter_graceful_shutdown()
        deadline = time.monotonic() + grace_seconds
        await _within(deadline - time.monotonic(), prepare)
        await self._server.stop(max(deadline - time.monotonic(), 0.0))
        await _within(deadline - time.monotonic(), settle)

    async def _set_health(self, status: Any) -> None:
        for name in ("", *self._names):
            await self._health.set(name, status)


async def _within(seconds: float, work: Work | None) -> None:
    if work:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await work()


def make_server(
    address: str,
    services: Sequence[Service],
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    limit: CallLimitInterceptor | None = None,
    setting: str = "address",
) -> Server:
    """Binds `host:port` (port 0 takes a free one) and adds the services, health and reflection. `interceptors` see
    calls as gRPC does: bytes in, and an error as the status that it became; a call that `limit` refuses too. `setting`
    is where the address was set.

    Raises ConfigError where the address cannot be listened on. Call within a running event loop.
    """
    host = address.rpartition(":")[0]
    chain = (TraceContextInterceptor(), *interceptors, ErrorInterceptor(), *([limit] if limit else []))
    most_open = limit.most_open if limit else None
    server = grpc.aio.server(interceptors=chain, options=_SERVER_OPTIONS, maximum_concurrent_rpcs=most_open)
    for service in services:
        service.add(service.servicer, server)
    health_servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    names = [service.name for service in services]
    reflection.enable_server_reflection((*names, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    port = _bind(server, address, setting)
    return Server(server, health_servicer, names, host, port)


def _bind(server: grpc.aio.Server, address: str, setting: str) -> int:
    hold_port(address, setting).close()
    try:
        return server.add_insecure_port(address)
    except RuntimeError as error:
        raise cannot_listen(address, setting, error) from None


async def stop_signal() -> str:
    """Waits for SIGTERM or SIGINT and returns its name. A second one acts as if nobody waited."""
    loop = asyncio.get_running_loop()
    received: asyncio.Future[str] = loop.create_future()
    signals = (signal.SIGTERM, signal.SIGINT)

    def receive(which: signal.Signals) -> None:
        if not received.done():
            received.set_result(which.name)

    for which in signals:
        loop.add_signal_handler(which, receive, which)
    try:
        return await received
    finally:
        for which in signals:
            loop.remove_signal_handler(which)


async def serve_until_signal(
    server: Server,
    grace_seconds: float,
    prepare: Work | None = None,
    trouble: Coroutine[Any, Any, None] | None = None,
    helpers: Sequence[Server] = (),
    settle: Work | None = None,
) -> None:
    """Starts the server, waits for SIGTERM or SIGINT, then drains it, which gives calls under way `grace_seconds` to
    end, with `prepare` before and `settle` after that (see `Server.drain`).

    `trouble` runs beside the server; when it ends the server is drained as well, and what it raised is raised.
    `helpers` are servers that it needs: they start before it, answer while it drains, and stop at once then.
    """
    _keep_loaded_objects()
    for each in (*helpers, server):
        await each.start()
        log.info("serving", extra={"address": each.address})
    try:
        log.info("draining", extra={"signal": await _signal_or(trouble)})
    finally:
        await server.drain(grace_seconds, prepare, settle)
        for helper in helpers:
            await helper.drain(0)


def _keep_loaded_objects() -> None:
    """What was loaded so far stays as long as the process: garbage collections need not look at it again, which would
    stop every thread, the engine's in the middle of a step."""
    gc.collect()
    gc.freeze()


async def _signal_or(trouble: Coroutine[Any, Any, None] | None) -> str:
    """The signal's name; empty where `trouble` ended before there was one. Raises what it raised."""
    signal_task = asyncio.create_task(stop_signal())
    waiting: list[asyncio.Task[Any]] = [signal_task, *([asyncio.create_task(trouble)] if trouble else [])]
    try:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        results = [task.result() for task in done]
        return results[0] if signal_task in done else ""
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
