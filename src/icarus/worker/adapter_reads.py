"""Reading adapters' folders off the event loop: few at once, and none for ever."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import torch

from icarus.adapters.lora import LoraWeights
from icarus.errors import DeadlineError, OverloadedError
from icarus.types import AdapterMode
from icarus.worker.compute import run_in_passing_thread

ReadAdapter = Callable[[Path, str, AdapterMode | None], LoraWeights]
"""(folder, name, mode) -> weights; blocks, and raises what `load_peft_folder` raises."""
ResolveFolder = Callable[[str | Path, str], Path]
"""(path, name) -> the folder behind the path; blocks, and refuses one that may not be read."""

logger = logging.getLogger(__name__)

_MAX_READS_AT_ONCE = 2
_PLACE_SECONDS = 10.0
"""A read that takes longer waits for its file system, and is in nobody's way."""
READ_SECONDS = 90.0
"""A file system that takes longer does not answer at all. Less than a gateway waits, so that it hears why."""


class AdapterReads:
    """Used from one event loop. A read that nobody waits for any more goes on, and keeps its place as any other."""

    def __init__(
        self,
        resolve: ResolveFolder,
        read: ReadAdapter,
        limit_seconds: float = READ_SECONDS,
        place_seconds: float = _PLACE_SECONDS,
    ):
        self._resolve = resolve
        self._read = read
        self._limit_seconds = limit_seconds
        self._place_seconds = min(place_seconds, limit_seconds)
        self._places = asyncio.Semaphore(_MAX_READS_AT_ONCE)
        self._under_way: set[asyncio.Task[tuple[Path, LoraWeights]]] = set()
        self._slow: set[str] = set()
        """Paths whose read has given its place up. It has a thread until it ends, and there is no second one."""

    async def read(self, path: str | Path, name: str, mode: AdapterMode | None) -> tuple[Path, LoraWeights]:
        """The folder behind the path, and its weights.

        Raises what `resolve` and `read` raise, DeadlineError where the file system does not answer, OverloadedError
        where there is no memory for the weights.
        """
        reading = asyncio.create_task(self._take_turn(path, name, mode))
        self._under_way.add(reading)
        reading.add_done_callback(self._end)
        return await asyncio.shield(reading)

    def _end(self, reading: "asyncio.Task[tuple[Path, LoraWeights]]") -> None:
        self._under_way.discard(reading)
        if not reading.cancelled():
            reading.exception()  # whoever waits raises it; they may all be gone

    async def _take_turn(self, path: str | Path, name: str, mode: AdapterMode | None) -> tuple[Path, LoraWeights]:
        async with self._places:
            if str(path) in self._slow:
                raise self._late(path, name, self._place_seconds)
            reading = asyncio.ensure_future(run_in_passing_thread(self._read_now, path, name, mode))
            await asyncio.wait({reading}, timeout=self._place_seconds)
        if not reading.done():
            self._slow.add(str(path))
            reading.add_done_callback(lambda _: self._slow.discard(str(path)))
            await asyncio.wait({reading}, timeout=self._limit_seconds - self._place_seconds)
        if reading.done():
            return reading.result()
        late = self._late(path, name, self._limit_seconds)
        logger.warning("%s", late)
        raise late

    def _read_now(self, path: str | Path, name: str, mode: AdapterMode | None) -> tuple[Path, LoraWeights]:
        folder = self._resolve(path, name)
        try:
            return folder, self._read(folder, name, mode)
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise OverloadedError(
                f"adapter {name!r}: no memory for its weights ({str(error).partition(chr(10))[0]}); lower [worker] "
                "max_resident_adapters or [cache] num_blocks"
            ) from None

    def _late(self, path: str | Path, name: str, seconds: float) -> DeadlineError:
        return DeadlineError(
            f"adapter {name!r}: {path} was not read within {seconds:g} s; does its file system answer?"
        )
