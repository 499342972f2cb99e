"""Who is there: the workers that registered, and which of them are live or lost."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

from icarus.errors import FailedPreconditionError, NotFoundError, UnavailableError
from icarus.rpc.messages import PROTOCOL_VERSION
from icarus.types import AdapterInfo, Role, WorkerId
from icarus_gateway.cluster.worker import Heartbeat, Worker, WorkerInfo
from icarus_gateway.cluster.worker_connection import WorkerConnection

log = logging.getLogger(__name__)

_MISSED_UNTIL_LEFT_OUT = 3
_MISSED_UNTIL_LOST = 10
"""A running turn waits longer than routing does: a busy machine delays heartbeats, and a dead process is heard of
at once by its broken connection."""
_MISSED_UNTIL_FORGOTTEN = 60

Answer = TypeVar("Answer")


class WorkerTable:
    """Registered workers by name. Used from one event loop; `clock` is monotonic seconds."""

    def __init__(
        self,
        base_model: str,
        heartbeat_seconds: float,
        max_engine_age_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ):
        """`base_model` is the name of the one that the gateway serves."""
        self._base_model = base_model
        self.heartbeat_seconds = heartbeat_seconds
        self._max_engine_age_seconds = max_engine_age_seconds
        self._clock = clock
        self._workers: dict[WorkerId, Worker] = {}
        self._closing: list[WorkerConnection] = []
        self._listens = True

    def register(
        self, info: WorkerInfo, protocol_version: int, adapters: Sequence[AdapterInfo], adapters_revision: int = 0
    ) -> Worker:
        """Takes a worker in; a new instance of a known name takes its place.

        Raises FailedPreconditionError where it does not fit this gateway, or the workers that are not lost.
        """
        if protocol_version != PROTOCOL_VERSION:
            raise FailedPreconditionError(
                f"worker {info.worker_id} speaks protocol version {protocol_version}, this gateway "
                f"{PROTOCOL_VERSION}; run the same release of both"
            )
        self._require_fits(info)
        old = self._workers.get(info.worker_id)
        if old is not None and old.info == info:  # it only lost touch: its turns and its connection live on
            old.last_seen, old.failed = self._clock(), False
            old.learn_adapters(adapters, adapters_revision)
            return old
        if old is not None:
            self._retire(old, info)
        connection = WorkerConnection(info.worker_id, info.address)
        worker = Worker(info, connection, {}, last_seen=self._clock())
        worker.learn_adapters(adapters, adapters_revision)
        self._workers[info.worker_id] = worker
        return worker

    def beat(
        self,
        worker_id: WorkerId,
        instance_id: str,
        heartbeat: Heartbeat,
        adapters: Sequence[AdapterInfo],
        adapters_revision: int = 0,
    ) -> None:
        """Notes a heartbeat. Raises NotFoundError for an instance that is not registered, FailedPreconditionError for
        one that was silent for so long that others have taken its place, with another model."""
        worker = self.instance(worker_id, instance_id)
        if not self._is_there(worker):
            self._require_fits(worker.info)
        worker.take_heartbeat(heartbeat, self._clock())
        worker.learn_adapters(adapters, adapters_revision)

    def deregister(self, worker_id: WorkerId, instance_id: str) -> None:
        """Removes a worker that ends. Raises NotFoundError for an instance that is not registered."""
        self._closing.append(self.instance(worker_id, instance_id).connection)
        del self._workers[worker_id]

    def forget_silent(self) -> list[WorkerId]:
        """Removes workers that were not heard of for long, and names them."""
        limit = self._clock() - self.forgotten_after_seconds
        silent = [worker for worker in self._workers.values() if worker.last_seen < limit]
        for worker in silent:
            self._closing.append(self._workers.pop(worker.worker_id).connection)
        return [worker.worker_id for worker in silent]

    @property
    def forgotten_after_seconds(self) -> float:
        """How long a worker may be silent before it is forgotten."""
        return _MISSED_UNTIL_FORGOTTEN * self.heartbeat_seconds

    def stop_listening(self) -> None:
        """The gateway drains and refuses heartbeats: silence says nothing any more; a dead worker's connection does."""
        self._listens = False

    def instance(self, worker_id: WorkerId, instance_id: str) -> Worker:
        """The worker if it is still this instance; raises NotFoundError otherwise."""
        if not self.has(worker_id, instance_id):
            raise NotFoundError(f"worker {worker_id!r} (instance {instance_id!r}) is not registered; register first")
        return self._workers[worker_id]

    def has(self, worker_id: WorkerId, instance_id: str) -> bool:
        """Whether the worker is registered, and still this instance."""
        worker = self._workers.get(worker_id)
        return worker is not None and worker.info.instance_id == instance_id

    def known(self, role: Role | None = None) -> list[Worker]:
        """Every worker that registered and was not forgotten since, by name."""
        workers = (worker for worker in self._workers.values() if role in (None, worker.info.role))
        return sorted(workers, key=lambda worker: worker.worker_id)

    def live(self, role: Role | None = None) -> list[Worker]:
        """Live workers by name."""
        return [worker for worker in self.known(role) if self.is_live(worker)]

    def require_live(self, role: Role) -> list[Worker]:
        """Raises UnavailableError where there is none."""
        workers = self.live(role)
        if not workers:
            raise UnavailableError(
                f"no {role.value} worker is registered and alive; start one with `icarus serve {role.value}`"
            )
        return workers

    def adapters(self) -> dict[str, AdapterInfo]:
        """Every adapter of a live worker, by name."""
        return {name: info for worker in self.live() for name, info in sorted(worker.adapters.items())}

    def is_live(self, worker: Worker) -> bool:
        """Whether new work may go to it."""
        return self._is_well(worker) and not worker.heartbeat.draining

    def is_draining(self, worker: Worker) -> bool:
        """Whether it is well, but ends what it has and takes nothing new."""
        return self._is_well(worker) and worker.heartbeat.draining

    def is_lost(self, worker: Worker) -> bool:
        """Whether work that it has now should be given up."""
        return self._workers.get(worker.worker_id) is not worker or not self._is_heard(worker, _MISSED_UNTIL_LOST)

    def silent_seconds(self, worker: Worker) -> float:
        """Since it was last heard of."""
        return self._clock() - worker.last_seen

    async def next_heartbeat(self, worker: Worker) -> None:
        """Waits for it, but not longer than until the worker would be left out."""
        worker.heard.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(worker.heard.wait(), _MISSED_UNTIL_LEFT_OUT * self.heartbeat_seconds)

    async def answer_of(self, worker: Worker, call: Coroutine[Any, Any, Answer]) -> Answer:
        """Makes a call to the worker. Raises what it raises, and UnavailableError where the worker is lost."""
        asking = asyncio.ensure_future(call)
        try:
            await self.wait_on(worker, asking)
            return asking.result()
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def wait_on(self, worker: Worker, answer: "asyncio.Future[Any]") -> None:
        """Returns once the worker's answer is there, or an error. Raises UnavailableError where the worker is lost."""
        was_lost = False
        while not answer.done():
            await asyncio.wait((answer,), timeout=self.heartbeat_seconds)
            lost = not answer.done() and self.is_lost(worker)
            if lost and was_lost:  # once may be this process, too busy to have taken in the heartbeats that came
                raise UnavailableError(f"worker {worker.worker_id} was not heard of any more")
            was_lost = lost

    @contextlib.contextmanager
    def assigned(self, worker: Worker) -> Iterator[None]:
        """Counts a turn on the worker while it runs."""
        worker.num_assigned += 1
        worker.peak_assigned = max(worker.peak_assigned, worker.num_assigned)
        try:
            yield
        finally:
            worker.num_assigned -= 1

    async def close_unused(self) -> None:
        """Closes the connections to replaced and removed workers."""
        while self._closing:
            await self._closing.pop().close()

    async def close(self) -> None:
        self._closing.extend(worker.connection for worker in self._workers.values())
        self._workers.clear()
        await self.close_unused()

    def _require_fits(self, info: WorkerInfo) -> None:
        """Raises FailedPreconditionError where this gateway, or workers that are not lost, serve another model."""
        if info.base_model != self._base_model:
            raise FailedPreconditionError(
                f"worker {info.worker_id} serves the model {info.base_model!r}, but this gateway {self._base_model!r}; "
                "where it is the same model under two names, give both one [model] name"
            )
        for other in self._workers.values():
            if other.worker_id != info.worker_id and self._is_there(other):
                _require_same_model(info, other.info)

    def _retire(self, old: Worker, new: WorkerInfo) -> None:
        if self.is_live(old):
            log.warning(
                "worker replaced by another instance of the same name",
                extra={"worker": new.worker_id, "old": old.info.address, "new": new.address},
            )
        self._closing.append(old.connection)

    def _is_there(self, worker: Worker) -> bool:
        """Whether it was heard of lately, however it is."""
        return self.silent_seconds(worker) <= _MISSED_UNTIL_LOST * self.heartbeat_seconds

    def _is_well(self, worker: Worker) -> bool:
        return not worker.failed and self._is_heard(worker, _MISSED_UNTIL_LEFT_OUT)

    def _is_heard(self, worker: Worker, missed: int) -> bool:
        is_silent = self._listens and self.silent_seconds(worker) > missed * self.heartbeat_seconds
        return not is_silent and worker.heartbeat.engine_age_seconds <= self._max_engine_age_seconds


def _require_same_model(info: WorkerInfo, other: WorkerInfo) -> None:
    for name in ("base_digest", "block_size", "cache_fingerprint"):
        mine = getattr(info, name)
        if mine != getattr(other, name):
            raise FailedPreconditionError(
                f"worker {info.worker_id} ({info.base_model}) has {name} {mine}, but worker {other.worker_id} "
                f"({other.base_model}) has another; workers of one gateway serve the same model with the same settings"
            )
