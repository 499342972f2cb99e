"""A worker's adapters: read off the event loop, kept in slots, read again when a turn asks for one that was evicted."""

import asyncio
from pathlib import Path

from icarus.adapters.lora import LoraWeights
from icarus.adapters.registry import AdapterCounts, AdapterRegistry
from icarus.errors import FailedPreconditionError, IcarusError, NotFoundError, OverloadedError
from icarus.types import AdapterInfo, AdapterMode
from icarus.worker.adapter_reads import AdapterReads


class AdapterHost:
    """Used from one event loop. `max_waiting` bounds the turns that wait for a read."""

    def __init__(self, registry: AdapterRegistry, reads: AdapterReads, max_waiting: int):
        self._registry = registry
        self._reads = reads
        self._max_waiting = max_waiting
        self._num_waiting = 0
        self._restoring: dict[tuple[str, str, AdapterMode], asyncio.Task[LoraWeights]] = {}
        """By name, digest and mode: who asks for the same weights waits for the same read."""

    @property
    def revision(self) -> int:
        """Counts the changes that `list` shows."""
        return self._registry.revision

    @property
    def counts(self) -> AdapterCounts:
        return self._registry.counts

    def list(self) -> tuple[AdapterInfo, ...]:
        """By name."""
        return self._registry.list()

    async def load(
        self, name: str, path: str | Path, mode: AdapterMode | None, replace: bool = False, pin: bool = False
    ) -> AdapterInfo:
        """Reads a PEFT folder and makes the name stand for it; with `replace` in place of what it stood for.

        Raises what `AdapterReads.read` raises, AlreadyExistsError, OverloadedError.
        """
        self._registry.require_slot(name)
        folder, weights = await self._reads.read(path, name, mode)
        return self._registry.add(weights, folder, replace, pin)

    def unload(self, name: str) -> None:
        """Raises NotFoundError."""
        self._registry.remove(name)

    async def pin(self, name: str, pinned: bool) -> None:
        """Raises NotFoundError, and what `weights` raises where a pinned adapter must be read again."""
        if pinned:
            weights = await self.weights(name)
            self._require_same(name, weights.digest, weights.mode)
            self._registry.restore(weights)
        self._registry.set_pinned(name, pinned)

    async def weights(self, name: str, digest: str = "", mode: str = "") -> LoraWeights:
        """The adapter's weights, read again if they were evicted. `digest` and `mode` are what the name must stand for,
        where given: the mode decides whose names its turns' blocks get.

        Raises NotFoundError where it does not, FailedPreconditionError where its folder holds other weights by now or
        cannot be read any more, OverloadedError where every slot is pinned, memory is short, or too many turns wait for
        a read.
        """
        self._require_same(name, digest, mode)
        return self._registry.use(name) or await self._wait_for(self._restore(name))

    def _require_same(self, name: str, digest: str, mode: str) -> None:
        held = self._registry.info(name)
        if digest not in ("", held.digest):
            raise NotFoundError(
                f"adapter {name!r} stands for the weights with digest {held.digest} here, no longer for those with "
                f"digest {digest}: it was replaced"
            )
        if mode not in ("", held.mode):
            raise NotFoundError(f"adapter {name!r} is {held.mode} here, no longer {mode}: it was replaced")

    def _restore(self, name: str) -> "asyncio.Task[LoraWeights]":
        info = self._registry.info(name)
        key = (name, info.digest, info.mode)
        if key not in self._restoring:
            task = asyncio.create_task(self._read_again(info, self._registry.folder(name)))
            self._restoring[key] = task
            task.add_done_callback(lambda task: self._restored(key, task))
        return self._restoring[key]

    def _restored(self, key: tuple[str, str, AdapterMode], task: "asyncio.Task[LoraWeights]") -> None:
        del self._restoring[key]
        if not task.cancelled():
            task.exception()  # those who wait raise it; they may all be gone

    async def _wait_for(self, reading: "asyncio.Task[LoraWeights]") -> LoraWeights:
        """A turn that is cancelled leaves the read to the others."""
        if self._num_waiting >= self._max_waiting:
            raise OverloadedError(f"{self._num_waiting} turns wait for adapters to be read; try again")
        self._num_waiting += 1
        try:
            return await asyncio.shield(reading)
        finally:
            self._num_waiting -= 1

    async def _read_again(self, info: AdapterInfo, folder: Path) -> LoraWeights:
        try:
            _, weights = await self._reads.read(folder, info.name, info.mode)
        except OverloadedError:
            raise
        except IcarusError as error:
            raise FailedPreconditionError(
                f"adapter {info.name!r} was evicted and cannot be read again: {error}; load it anew with replace, "
                "or put its files back"
            ) from None
        if weights.digest != info.digest:
            raise FailedPreconditionError(
                f"adapter {info.name!r} was evicted, and {folder} holds other weights by now (digest {weights.digest}; "
                f"loaded were those with digest {info.digest}); load it anew with replace, or put its files back"
            )
        self._registry.restore(weights)
        return weights
