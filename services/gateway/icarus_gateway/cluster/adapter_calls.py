"""What the gateway asks of one worker about adapters, and notes of the answer."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from icarus.errors import DeadlineError, NotFoundError
from icarus.types import AdapterInfo, AdapterMode
from icarus.worker.v1 import adapter_service_pb2 as pb
from icarus_gateway.cluster.worker import Worker
from icarus_gateway.cluster.workers import WorkerTable

log = logging.getLogger(__name__)

_LIMIT_SECONDS = 120.0
"""Adapters may be large, and their disk far away."""

Answer = TypeVar("Answer")


class AdapterCalls:
    """All raise what the worker raised, UnavailableError where it is lost and DeadlineError after two minutes."""

    def __init__(self, workers: WorkerTable):
        self._workers = workers

    async def load(self, worker: Worker, request: pb.LoadAdapterRequest) -> AdapterInfo:
        answer = await self._ask(worker, request.name, worker.connection.load_adapter(request, _LIMIT_SECONDS))
        held = worker.adapters.get(request.name)
        pinned = request.pin or (held is not None and held.pinned)
        info = AdapterInfo(request.name, answer.digest, AdapterMode(answer.mode), answer.rank, pinned=pinned)
        worker.learn_adapter(info, answer.adapters_revision)
        return info

    async def unload(self, worker: Worker, name: str) -> None:
        request = pb.UnloadAdapterRequest(name=name)
        answer = await self._ask(worker, name, worker.connection.unload_adapter(request, _LIMIT_SECONDS))
        worker.learn_unloaded(name, answer.adapters_revision)

    async def pin(self, worker: Worker, name: str, pinned: bool) -> None:
        request = pb.PinAdapterRequest(name=name, pinned=pinned)
        answer = await self._ask(worker, name, worker.connection.pin_adapter(request, _LIMIT_SECONDS))
        info = worker.adapters.get(name)
        if info is not None:
            changed = replace(info, pinned=pinned, resident=pinned or info.resident)
            worker.learn_adapter(changed, answer.adapters_revision)

    async def _ask(self, worker: Worker, name: str, call: Coroutine[Any, Any, Answer]) -> Answer:
        try:
            return await self._workers.answer_of(worker, call)
        except DeadlineError as error:
            raise DeadlineError(
                f"{error}; a worker has {_LIMIT_SECONDS:g} s for adapter {name!r}: look at its log, and at the disk "
                "that it reads adapters from"
            ) from None


async def roll_back(
    workers: Sequence[Worker], name: str, undo: Callable[[Worker], Coroutine[Any, Any, None]]
) -> list[Worker]:
    """Undoes on each what was asked of it; one that does not have the adapter has nothing to undo. Returns the workers
    where that failed."""
    left = []
    for worker, result in zip(workers, await asyncio.gather(*map(undo, workers), return_exceptions=True), strict=True):
        if isinstance(result, BaseException) and not isinstance(result, NotFoundError):
            left.append(worker)
            log.error("roll-back failed", extra={"worker": worker.worker_id, "adapter": name, "reason": str(result)})
    return left
