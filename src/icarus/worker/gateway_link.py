"""Tells gateways that this worker is there, how loaded it is, and which blocks it names and drops.

One link a gateway; links know nothing of each other. Start order does not matter: a link retries until it is heard.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

import grpc
import grpc.aio

from icarus.cache.changes import BlockChange
from icarus.engine.engine import Engine
from icarus.engine.state import EngineState
from icarus.rpc.channel import open_channel
from icarus.rpc.messages import PROTOCOL_VERSION, adapter_to_wire
from icarus.types import BlockHash
from icarus.worker.change_feed import ChangeFeed
from icarus.worker.v1 import registry_service_pb2 as pb
from icarus.worker.v1 import registry_service_pb2_grpc as pb_grpc
from icarus.worker.worker import Worker

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 0.5
_LEAVE_SECONDS = 2.0
_MAX_PENDING = 100_000
"""Changes kept for a gateway that does not answer; past that it gets a snapshot."""


class GatewayLink:
    """This worker's side of one gateway."""

    def __init__(self, gateway_address: str, worker: Worker, changes: ChangeFeed, own_address: str):
        self._gateway_address = gateway_address
        self._own_address = own_address
        self._worker = worker
        self._names = {"worker_id": worker.identity.worker_id, "instance_id": worker.identity.instance_id}
        self._pending: deque[BlockChange] = deque()
        self._next_sequence = 0
        """The number after the last pending change."""
        self._told_sequence = 0
        """The number of the first change that the gateway has not been told."""
        self._needs_snapshot = True
        self._wake = asyncio.Event()
        self._draining = False
        self._hurry = asyncio.Event()
        """A heartbeat is due now."""
        self._heard = False
        self._trouble = ""
        """Why the gateway was lost or would not have us, last time."""
        changes.listen(self._add_changes)

    async def run(self) -> None:
        """Registers, then reports until cancelled; begins again whenever the gateway is lost or forgets us."""
        async with open_channel(self._gateway_address) as channel:
            registry = pb_grpc.RegistryServiceStub(channel)
            while not _is_cancelled():  # a group of tasks with errors raises these alone
                try:
                    await asyncio.create_task(self._serve(registry))  # a group that failed leaves its task cancelled
                except* grpc.aio.AioRpcError as errors:
                    self._lost(errors.exceptions[0])
                await asyncio.sleep(_RETRY_SECONDS)

    def announce_drain(self) -> None:
        """Heartbeats go on and say from now on that this worker takes nothing new."""
        self._draining = True
        self._hurry.set()

    async def take_leave(self) -> None:
        """Has the gateway forget this worker now rather than miss its heartbeats. To be called once `run` has ended."""
        async with open_channel(self._gateway_address) as channel:
            registry = pb_grpc.RegistryServiceStub(channel)
            with suppress(grpc.aio.AioRpcError):  # it is gone, or never had this worker
                await registry.Deregister(pb.DeregisterRequest(**self._names), timeout=_LEAVE_SECONDS)

    async def _serve(self, registry: pb_grpc.RegistryServiceStub) -> None:
        answer = await registry.Register(self._introduction())
        logger.info("registered", extra={"gateway": self._gateway_address})
        self._heard = self._needs_snapshot = True
        self._trouble = ""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._send_heartbeats(registry, answer.heartbeat_interval_seconds))
            group.create_task(self._send_reports(registry))

    def _lost(self, error: BaseException) -> None:
        """Says each new trouble once; that a gateway is not up yet is none."""
        trouble = _detail(error)
        is_trouble = self._heard or not (isinstance(error, grpc.aio.AioRpcError) and _is_unavailable(error))
        if trouble != self._trouble:
            level = logging.WARNING if is_trouble else logging.INFO
            logger.log(level, "gateway %s does not have this worker, trying again: %s", self._gateway_address, trouble)
        self._heard, self._trouble = False, trouble

    def _introduction(self) -> pb.RegisterRequest:
        identity = self._worker.identity
        return pb.RegisterRequest(
            **self._names,
            role=identity.role.value,
            address=self._own_address,
            protocol_version=PROTOCOL_VERSION,
            base_model=identity.base_model,
            base_digest=identity.base_digest,
            cache_fingerprint=identity.fingerprint,
            block_size=identity.block_size,
            num_blocks=identity.num_blocks,
            context_length=identity.context_length,
            adapters=self._adapters(),
            adapters_revision=self._worker.adapters.revision,
        )

    def _adapters(self) -> list[pb.Adapter]:
        return [adapter_to_wire(adapter) for adapter in self._worker.adapters.list()]

    async def _send_heartbeats(self, registry: pb_grpc.RegistryServiceStub, interval_seconds: float) -> None:
        """Once it has answered, an engine that hangs does not stop the heartbeats: their `engine_age_seconds` tells."""
        state = await self._engine_state()
        query = self._query_engine()
        while True:
            if query.done():
                state = state if query.exception() else query.result()  # a failed engine ends the worker
                query = self._query_engine()
            self._hurry.clear()
            await registry.Heartbeat(
                pb.HeartbeatRequest(
                    **self._names,
                    engine_age_seconds=self._worker.engine.age_seconds,
                    running_requests=state.running_requests,
                    waiting_requests=state.waiting_requests,
                    available_blocks=state.pool.free + state.pool.cached,
                    adapters=self._adapters(),
                    adapters_revision=self._worker.adapters.revision,
                    draining=self._draining,
                )
            )
            with suppress(TimeoutError):
                async with asyncio.timeout(interval_seconds):
                    await self._hurry.wait()

    def _query_engine(self) -> "asyncio.Task[EngineState]":
        query = asyncio.ensure_future(self._engine_state())
        query.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may ask any more by then
        return query

    async def _engine_state(self) -> EngineState:
        return await asyncio.wrap_future(self._worker.engine.post(Engine.state))

    def _add_changes(self, first_sequence: int, changes: Sequence[BlockChange]) -> None:
        self._pending.extend(changes)
        self._next_sequence = first_sequence + len(changes)
        if len(self._pending) > _MAX_PENDING:
            self._pending.clear()
            self._needs_snapshot = True
        self._wake.set()

    async def _send_reports(self, registry: pb_grpc.RegistryServiceStub) -> None:
        while True:
            self._drop_told()
            if self._needs_snapshot:
                await self._send_snapshot(registry)
            elif self._pending:
                await self._send_changes(registry)
            else:
                self._wake.clear()
                await self._wake.wait()

    def _drop_told(self) -> None:
        """A snapshot may tell changes before they reach this link."""
        while self._pending and self._next_sequence - len(self._pending) < self._told_sequence:
            self._pending.popleft()

    async def _send_snapshot(self, registry: pb_grpc.RegistryServiceStub) -> None:
        self._needs_snapshot = False  # from here on changes may be dropped again, and want another one
        sequence, names = await asyncio.wrap_future(self._worker.engine.post(_snapshot))
        report = pb.BlockSnapshot(block_hashes=names)
        await registry.ReportBlocks(pb.ReportBlocksRequest(**self._names, first_sequence=sequence, snapshot=report))
        self._told_sequence = sequence

    async def _send_changes(self, registry: pb_grpc.RegistryServiceStub) -> None:
        first, changes = self._next_sequence - len(self._pending), list(self._pending)
        self._pending.clear()
        wire = [pb.BlockChange(block_hash=change.block_hash, removed=change.removed) for change in changes]
        answer = await registry.ReportBlocks(pb.ReportBlocksRequest(**self._names, first_sequence=first, changes=wire))
        self._told_sequence = first + len(changes)
        if answer.next_sequence != self._told_sequence:
            self._needs_snapshot = True


def _snapshot(engine: Engine) -> tuple[int, list[BlockHash]]:
    """(number of the next change, every name) at one moment. Runs on the engine thread."""
    return engine.pool.changes.next_sequence, engine.pool.named()


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _is_unavailable(error: grpc.aio.AioRpcError) -> bool:
    return error.code() is grpc.StatusCode.UNAVAILABLE


def _detail(error: BaseException) -> str:
    return f"{error.details()} ({error.code().name})" if isinstance(error, grpc.aio.AioRpcError) else repr(error)
