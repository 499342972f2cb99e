"""One load of an adapter over several workers, which is undone where one of them fails."""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from icarus.errors import (
    AlreadyExistsError,
    DeadlineError,
    FailedPreconditionError,
    IcarusError,
    UnavailableError,
)
from icarus.types import AdapterInfo
from icarus.worker.v1 import adapter_service_pb2 as pb
from icarus_gateway.cluster.adapter_calls import AdapterCalls, roll_back
from icarus_gateway.cluster.worker import Worker


class AdapterLoading:
    """Leaving the `with` by an error unloads the name from every worker that may have taken it, other than `holders`,
    who had it before: they unpin it, if this pinned it. The error then names the workers that may have the request's
    weights all the same: holders whose weights were replaced, and workers where undoing failed.
    """

    def __init__(self, calls: AdapterCalls, request: pb.LoadAdapterRequest, holders: Sequence[Worker]):
        self._calls = calls
        self._request = request
        self._holders = holders
        pins_alone = request.pin and not request.replace
        self._pinned_anew = [w for w in holders if pins_alone and not w.adapters[request.name].pinned]
        self._taken: list[Worker] = []
        """Workers that have loaded it, or may have."""

    async def load_on(self, workers: Sequence[Worker], known: AdapterInfo | None) -> AdapterInfo:
        """Loads on each worker in turn, so that little is undone if one refuses. `known` is what the name means
        already. Raises FailedPreconditionError or AlreadyExistsError where a worker read something else."""
        for worker in workers:
            info = await self._load(worker)
            if known is not None and (known.digest, known.mode) != (info.digest, info.mode):
                raise _mismatch(worker, known, info)
            known = info
        assert known is not None
        return known

    async def _load(self, worker: Worker) -> AdapterInfo:
        try:
            info = await self._calls.load(worker, self._request)
        except (asyncio.CancelledError, UnavailableError, DeadlineError):  # it may have loaded it all the same
            self._taken.append(worker)
            raise
        self._taken.append(worker)
        return info

    def passed_over(self) -> list[Worker]:
        """Holders that it was not loaded on."""
        return [worker for worker in self._holders if worker not in self._taken]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            return
        changed = [worker for worker in self._taken if worker not in self._holders or worker in self._pinned_anew]
        left = await roll_back(changed, self._request.name, self._undo)
        if self._request.replace:
            left += [worker for worker in self._taken if worker in self._holders]
        if left and isinstance(error, IcarusError):
            raise self._half_done(error, left) from None

    async def _undo(self, worker: Worker) -> None:
        if worker in self._holders:
            await self._calls.pin(worker, self._request.name, False)
        else:
            await self._calls.unload(worker, self._request.name)

    def _half_done(self, error: IcarusError, workers: Sequence[Worker]) -> IcarusError:
        name, ids = self._request.name, ", ".join(worker.worker_id for worker in workers)
        if self._request.replace:
            return type(error)(f"{error}; {ids} may have the new weights of {name!r}: replace it again")
        return type(error)(f"{error}; {ids} may have {name!r} all the same: load it again, or unload it")


def _mismatch(worker: Worker, known: AdapterInfo, info: AdapterInfo) -> IcarusError:
    if known.mode is not info.mode:
        return AlreadyExistsError(
            f"adapter {info.name!r} is loaded as {known.mode.value} already, not {info.mode.value}; unload it first"
        )
    return FailedPreconditionError(
        f"adapter {info.name!r} has digest {info.digest} on worker {worker.worker_id} but {known.digest} elsewhere; "
        "unload the name first, or give every worker the same files"
    )
