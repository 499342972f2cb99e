"""Adapters over all workers: loaded everywhere or nowhere."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any
from weakref import WeakValueDictionary

from icarus.adapters.names import check_name
from icarus.errors import IcarusError, InvalidInputError, NotFoundError, UnavailableError
from icarus.types import AdapterInfo, AdapterMode, Role
from icarus.worker.v1 import adapter_service_pb2 as pb
from icarus_gateway.cluster.adapter_calls import AdapterCalls, roll_back
from icarus_gateway.cluster.adapter_loading import AdapterLoading
from icarus_gateway.cluster.worker import Worker
from icarus_gateway.cluster.workers import WorkerTable

_MAX_PATH_LENGTH = 1024
"""Paths are repeated in errors, as names are."""


class Adapters:
    """Loads adapters on workers and unloads them. `base_model` is a name that no adapter may take.

    A worker that has a name and cannot be reached now would come back with it as it was. So replacing, unloading and
    pinning are refused until it is there again or forgotten.
    """

    def __init__(self, workers: WorkerTable, base_model: str):
        self._workers = workers
        self._base_model = base_model
        self._calls = AdapterCalls(workers)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """By name; one that nobody holds or waits for is gone."""

    async def load(
        self,
        name: str,
        path: str,
        mode: AdapterMode | None,
        worker_ids: Sequence[str],
        replacing: bool = False,
        pin: bool = False,
    ) -> AdapterInfo:
        """Loads on the named workers, or on every suitable one. After an error no worker has it, or has it pinned, that
        had not before, but for those that the error names.

        When `replacing`, the name stands for these weights alone afterwards: workers that were not loaded on drop it.
        Where one refuses in mid-replacement, the error names those that may have the new weights already.

        Raises AlreadyExistsError, InvalidInputError, NotFoundError, UnavailableError, DeadlineError, and what a worker
        refused with.
        """
        check_name(name, self._base_model)
        _check_path(path)
        request = pb.LoadAdapterRequest(
            name=name, path=path, mode=mode.value if mode else "", replace=replacing, pin=pin
        )
        async with self._only_change_of(name):
            holders = self._reachable_holders(name) if replacing else self._holders(name)
            async with AdapterLoading(self._calls, request, holders) as loading:
                known = None if replacing else next((worker.adapters[name] for worker in holders), None)
                info = await self._load_all(loading, known, mode, worker_ids)
                if replacing:
                    await self._unload_all(loading.passed_over(), name)
                return info

    async def _load_all(
        self, loading: AdapterLoading, known: AdapterInfo | None, mode: AdapterMode | None, worker_ids: Sequence[str]
    ) -> AdapterInfo:
        chosen = [self._chosen(worker_id, mode) for worker_id in worker_ids]
        info = await loading.load_on(chosen or self._workers.require_live(Role.DECODE), known)
        if not chosen and info.mode is AdapterMode.PRIVATE:
            await loading.load_on(self._workers.live(Role.PREFILL), info)
        return info

    def _chosen(self, worker_id: str, mode: AdapterMode | None) -> Worker:
        worker = next((worker for worker in self._workers.live() if worker.worker_id == worker_id), None)
        if worker is None:
            known = ", ".join(worker.worker_id for worker in self._workers.live()) or "none"
            raise NotFoundError(f"worker {worker_id!r} is not here; live workers: {known}")
        if worker.info.role is Role.PREFILL and mode is not AdapterMode.PRIVATE:
            raise InvalidInputError(f"worker {worker_id!r} prefills; only adapters loaded as private go there")
        return worker

    async def unload(self, name: str) -> None:
        """Raises NotFoundError where no worker has it, UnavailableError where one that has it cannot be reached now;
        the first error after all workers were asked."""
        async with self._only_change_of(name):
            await self._unload_all(self._required_holders(name), name)

    async def pin(self, name: str, pinned: bool) -> None:
        """Pins or unpins on every worker that has it. After an error no worker has it pinned that had not before, but
        for those that the error names. Raises as `unload` does, and what a worker refused with."""
        async with self._only_change_of(name):
            holders = self._required_holders(name)
            unpinned = [worker for worker in holders if pinned and not worker.adapters[name].pinned]
            try:
                await _all([self._calls.pin(worker, name, pinned) for worker in holders])
            except BaseException as error:
                left = await roll_back(unpinned, name, lambda worker: self._calls.pin(worker, name, False))
                if left and isinstance(error, IcarusError):
                    raise _pinned_all_the_same(error, name, left) from None
                raise

    def _only_change_of(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    def _required_holders(self, name: str) -> list[Worker]:
        holders = self._reachable_holders(name)
        if not holders:
            known = ", ".join(sorted(self._workers.adapters())) or "none"
            raise NotFoundError(f"adapter {name!r} is not here; loaded adapters: {known}")
        return holders

    def _reachable_holders(self, name: str) -> list[Worker]:
        """Raises UnavailableError where one of the holders cannot be reached now."""
        holders = self._holders(name)
        away = [worker.worker_id for worker in holders if not self._workers.is_live(worker)]
        if away:
            raise UnavailableError(
                f"adapter {name!r} is on {', '.join(away)}, which cannot be reached now and would come back with it; "
                f"try again (a worker is forgotten once it was silent for {self._workers.forgotten_after_seconds:g} s)"
            )
        return holders

    def _holders(self, name: str) -> list[Worker]:
        """Workers that have it, reachable now or not. One that drains does not count: it takes no turn any more."""
        return [w for w in self._workers.known() if name in w.adapters and not w.heartbeat.draining]

    async def _unload_all(self, workers: Sequence[Worker], name: str) -> None:
        """Raises the first error after all workers were asked; one that does not have it any more is no error."""
        await _all([self._calls.unload(worker, name) for worker in workers], tolerated=NotFoundError)


def _pinned_all_the_same(error: IcarusError, name: str, workers: Sequence[Worker]) -> IcarusError:
    ids = ", ".join(worker.worker_id for worker in workers)
    return type(error)(f"{error}; {ids} may have {name!r} pinned all the same: pin it again, or unpin it")


def _check_path(path: str) -> None:
    if not path:
        raise InvalidInputError("path is ''; give the folder that the workers read the adapter from")
    if len(path) > _MAX_PATH_LENGTH:
        raise InvalidInputError(f"path has {len(path)} characters; at most {_MAX_PATH_LENGTH} are taken")


async def _all(calls: Sequence[Coroutine[Any, Any, None]], tolerated: type[Exception] | tuple[()] = ()) -> None:
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(result, BaseException) and not isinstance(result, tolerated):
            raise result
