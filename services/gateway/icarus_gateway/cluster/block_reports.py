"""Workers' reports of their blocks, and who waits for one."""

import asyncio
from collections.abc import Iterable, Iterator

from icarus.cache.changes import BlockChange
from icarus.cache.index import PrefixIndex
from icarus.types import BlockHash, WorkerId
from icarus_gateway.cluster.workers import WorkerTable


class BlockReports:
    """Feeds the index, one report after the other, and wakes whoever waits until it has come far enough. Other tasks
    run during a long report. A report raises NotFoundError where its worker, this instance of it, is not registered
    when its turn comes: nobody would take back what it says."""

    def __init__(self, index: PrefixIndex, workers: WorkerTable):
        self.index = index
        self._workers = workers
        self._feeding = asyncio.Lock()
        self._news: asyncio.Future[None] | None = None

    async def changes(
        self, worker: WorkerId, instance_id: str, first_sequence: int, changes: Iterable[BlockChange]
    ) -> int:
        """Returns the next sequence number expected of the worker."""
        return await self._feed(worker, instance_id, self.index.apply(worker, instance_id, first_sequence, changes))

    async def snapshot(self, worker: WorkerId, instance_id: str, sequence: int, hashes: Iterable[BlockHash]) -> int:
        """Returns the next sequence number expected of the worker."""
        return await self._feed(worker, instance_id, self.index.replace(worker, instance_id, sequence, hashes))

    async def _feed(self, worker: WorkerId, instance_id: str, steps: Iterator[None]) -> int:
        async with self._feeding:
            self._workers.instance(worker, instance_id)
            for _ in steps:
                await asyncio.sleep(0)
        self._wake()
        return self.index.sequence(worker)

    async def wait_for(self, worker: WorkerId, sequence: int, timeout_seconds: float) -> bool:
        """Waits until the worker's changes before `sequence` are known. False where that took too long."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while self.index.sequence(worker) < sequence:
                    if self._news is None:
                        self._news = asyncio.get_running_loop().create_future()
                    await asyncio.shield(self._news)
        except TimeoutError:
            return False
        return True

    def _wake(self) -> None:
        if self._news is not None:
            self._news.set_result(None)
            self._news = None
