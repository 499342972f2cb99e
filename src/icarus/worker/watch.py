"""What ends a worker besides a signal, so that whoever restarts processes starts a fresh one."""

import asyncio
import time
from contextlib import suppress

from icarus.engine.engine import Engine
from icarus.engine.thread import EngineThread
from icarus.errors import IcarusError, UnavailableError
from icarus.transfer.thread import TransferThread

_PERIOD_SECONDS = 1.0


class QuarantineFullError(IcarusError):
    """Too much of the pool is under reads that hang; only the end of the process stops those."""


class StuckReadError(IcarusError):
    """A read failed and may land at any time: its blocks, and its connection, are lost to this process."""


class ThreadHungError(IcarusError):
    """The engine or the transfer thread is in a call that does not return, and nothing can interrupt it."""


async def watch(
    engine: EngineThread, transfer: TransferThread, max_quarantined_blocks: int, max_step_seconds: float
) -> None:
    """Returns when a thread has stopped as it should.

    Raises EngineFailedError or TransferThreadFailedError where a bug or a lost device ended one, ThreadHungError where
    one has not come round for `max_step_seconds`, StuckReadError, and QuarantineFullError where more than
    `max_quarantined_blocks` stay in quarantine for longer than a read may take.
    """
    watching = [
        asyncio.create_task(_watch_quarantine(engine, max_quarantined_blocks, transfer.max_wait_seconds)),
        asyncio.create_task(_watch_threads(engine, transfer, max_step_seconds)),
    ]
    ended = asyncio.wrap_future(engine.ended), asyncio.wrap_future(transfer.ended)
    try:
        done, _ = await asyncio.wait({*watching, *ended}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in watching:
            task.cancel()


async def _watch_quarantine(engine: EngineThread, max_blocks: int, max_read_seconds: float) -> None:
    """The reads of turns that were cancelled are in quarantine too, until they are done; they do not hang."""
    within = time.monotonic()
    while True:
        await asyncio.sleep(_PERIOD_SECONDS)
        with suppress(UnavailableError):  # the engine has failed, and `ended` tells
            pool = (await asyncio.wrap_future(engine.post(Engine.state))).pool
            if pool.quarantined <= max_blocks:
                within = time.monotonic()
            elif time.monotonic() - within > max_read_seconds:
                raise QuarantineFullError(
                    f"{pool.quarantined} of {pool.total} blocks are in quarantine, under reads from workers that hang "
                    f"or died; {max_blocks} may be ([transfer] max_quarantined_fraction)"
                )


async def _watch_threads(engine: EngineThread, transfer: TransferThread, max_seconds: float) -> None:
    """A thread must be late twice: this process may have been stopped as a whole, and has just woken."""
    was_late = False
    while True:
        await asyncio.sleep(_PERIOD_SECONDS)
        if transfer.num_stuck:
            raise StuckReadError(f"{transfer.num_stuck} reads from other workers failed and will never settle")
        ages = {"engine": engine.age_seconds, "transfer": transfer.age_seconds}
        name, age = max(ages.items(), key=lambda item: item[1])
        if age > max_seconds and was_late:
            raise ThreadHungError(
                f"the {name} thread has not come round for {age:.0f} s; {max_seconds:g} may be ([engine] "
                "max_step_seconds)"
            )
        was_late = age > max_seconds
