"""Adapters over all workers: loaded everywhere or nowhere."""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any

from icarus.adapters.names import check_name
from icarus.errors import AlreadyExistsError, FailedPreconditionError, IcarusError, InvalidInputError, NotFoundError
from icarus.types import AdapterInfo, AdapterMode, Role
from icarus.worker.v1 import adapter_service_pb2 as pb
from icarus_gateway.cluster.worker import Worker
from icarus_gateway.cluster.workers import WorkerTable

log = logging.getLogger(__name__)

_MAX_PATH_LENGTH = 1024
"""Paths are repeated in errors, as names are."""


class Adapters:
    """Loads adapters on workers and unloads them. `base_model` is a name that no adapter may take."""

    def __init__(self, workers: WorkerTable, base_model: str):
        self._workers = workers
        self._base_model = base_model
        self._changing = asyncio.Lock()

    async def load(
        self,
        name: str,
        path: str,
        mode: AdapterMode | None,
        worker_ids: Sequence[str],
        replacing: bool = False,
        pin: bool = False,
    ) -> AdapterInfo:
        """Loads on the named workers, or on every suitable one. After an error no worker has it that had not before.

        When `replacing`, the name stands for these weights alone afterwards: workers that were not loaded on drop it.
        Where one refuses in mid-replacement, the error names those that have the new weights already.

        Raises AlreadyExistsError, InvalidInputError, NotFoundError, UnavailableError, and what a worker refused with.
        """
        check_name(name, self._base_model)
        _check_path(path)
        request = pb.LoadAdapterRequest(
            name=name, path=path, mode=mode.value if mode else "", replace=replacing, pin=pin
        )
        async with self._changing:
            had = [worker for worker in self._workers.live() if name in worker.adapters]
            loaded: list[Worker] = []
            try:
                info = await self._load_all(request, mode, worker_ids, loaded)
                if replacing:
                    await _unload_all([worker for worker in had if worker not in loaded], name)
                return info
            except BaseException as error:
                await self._roll_back(name, [worker for worker in loaded if worker not in had])
                replaced = [worker.worker_id for worker in loaded if worker in had]
                if replacing and replaced and isinstance(error, IcarusError):
                    raise _half_replaced(error, name, replaced) from None
                raise

    async def _load_all(
        self, request: pb.LoadAdapterRequest, mode: AdapterMode | None, worker_ids: Sequence[str], loaded: list[Worker]
    ) -> AdapterInfo:
        chosen = [self._chosen(worker_id, mode) for worker_id in worker_ids]
        known = None if request.replace else self._workers.adapters().get(request.name)
        info = await _load_on(chosen or self._workers.require_live(Role.DECODE), request, known, loaded)
        if not chosen and info.mode is AdapterMode.PRIVATE:
            await _load_on(self._workers.live(Role.PREFILL), request, info, loaded)
        return info

    def _chosen(self, worker_id: str, mode: AdapterMode | None) -> Worker:
        worker = next((worker for worker in self._workers.live() if worker.worker_id == worker_id), None)
        if worker is None:
            known = ", ".join(worker.worker_id for worker in self._workers.live()) or "none"
            raise NotFoundError(f"worker {worker_id!r} is not here; live workers: {known}")
        if worker.info.role is Role.PREFILL and mode is not AdapterMode.PRIVATE:
            raise InvalidInputError(f"worker {worker_id!r} prefills; only adapters loaded as private go there")
        return worker

    async def _roll_back(self, name: str, loaded: Sequence[Worker]) -> None:
        for worker in loaded:
            try:
                await _unload_from(worker, name)
            except NotFoundError:
                continue
            except IcarusError as error:
                log.error("roll-back failed", extra={"worker": worker.worker_id, "adapter": name, "reason": str(error)})

    async def unload(self, name: str) -> None:
        """Raises NotFoundError where no worker has it; the first error after all workers were asked."""
        async with self._changing:
            await _unload_all(self._having(name), name)

    async def pin(self, name: str, pinned: bool) -> None:
        """Pins or unpins on every worker that has it. Raises NotFoundError where none has; the first error after all
        workers were asked."""
        async with self._changing:
            await _ask_all([_pin_on(worker, name, pinned) for worker in self._having(name)])

    def _having(self, name: str) -> list[Worker]:
        having = [worker for worker in self._workers.live() if name in worker.adapters]
        if not having:
            known = ", ".join(sorted(self._workers.adapters())) or "none"
            raise NotFoundError(f"adapter {name!r} is not here; loaded adapters: {known}")
        return having


def _check_path(path: str) -> None:
    if not path:
        raise InvalidInputError("path is ''; give the folder that the workers read the adapter from")
    if len(path) > _MAX_PATH_LENGTH:
        raise InvalidInputError(f"path has {len(path)} characters; at most {_MAX_PATH_LENGTH} are taken")


async def _load_on(
    workers: Sequence[Worker], request: pb.LoadAdapterRequest, known: AdapterInfo | None, loaded: list[Worker]
) -> AdapterInfo:
    """Loads on each worker in turn, so that little is undone if one refuses. `known` is what the name means already.
    Workers that may have taken it are added to `loaded`."""
    name = request.name
    for worker in workers:
        try:
            answer = await worker.connection.load_adapter(request)
        except asyncio.CancelledError:  # it may have loaded it all the same
            loaded.append(worker)
            raise
        loaded.append(worker)
        held = worker.adapters.get(name)
        pinned = request.pin or (held is not None and held.pinned)
        info = AdapterInfo(name, answer.digest, AdapterMode(answer.mode), answer.rank, pinned=pinned)
        if known is not None and (known.digest, known.mode) != (info.digest, info.mode):
            raise _mismatch(worker, known, info)
        known = info
        worker.learn_adapters([*_without(worker, name), info], answer.adapters_revision)
    assert known is not None
    return known


def _half_replaced(error: IcarusError, name: str, worker_ids: Sequence[str]) -> IcarusError:
    return type(error)(f"{error}; the new weights of {name!r} are on {', '.join(worker_ids)} already: replace it again")


def _mismatch(worker: Worker, known: AdapterInfo, info: AdapterInfo) -> IcarusError:
    if known.mode is not info.mode:
        return AlreadyExistsError(
            f"adapter {info.name!r} is loaded as {known.mode.value} already, not {info.mode.value}; unload it first"
        )
    return FailedPreconditionError(
        f"adapter {info.name!r} has digest {info.digest} on worker {worker.worker_id} but {known.digest} elsewhere; "
        "unload the name first, or give every worker the same files"
    )


async def _unload_from(worker: Worker, name: str) -> None:
    answer = await worker.connection.unload_adapter(pb.UnloadAdapterRequest(name=name))
    worker.learn_adapters(_without(worker, name), answer.adapters_revision)


def _without(worker: Worker, name: str) -> list[AdapterInfo]:
    return [info for info in worker.adapters.values() if info.name != name]


async def _unload_all(workers: Sequence[Worker], name: str) -> None:
    """Raises the first error after all workers were asked; one that does not have it any more is no error."""
    await _ask_all([_unload_from(worker, name) for worker in workers], tolerated=NotFoundError)


async def _pin_on(worker: Worker, name: str, pinned: bool) -> None:
    answer = await worker.connection.pin_adapter(pb.PinAdapterRequest(name=name, pinned=pinned))
    info = worker.adapters.get(name)
    if info is not None:
        changed = replace(info, pinned=pinned, resident=pinned or info.resident)
        worker.learn_adapters([*_without(worker, name), changed], answer.adapters_revision)


async def _ask_all(calls: Sequence[Coroutine[Any, Any, None]], tolerated: type[Exception] | tuple[()] = ()) -> None:
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(result, BaseException) and not isinstance(result, tolerated):
            raise result
