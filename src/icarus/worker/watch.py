"""What ends a worker besides a signal, so that whoever restarts processes starts a fresh one."""

import asyncio
from contextlib import suppress

from icarus.engine.engine import Engine
from icarus.engine.thread import EngineThread
from icarus.errors import IcarusError, UnavailableError

_PERIOD_SECONDS = 1.0


class QuarantineFullError(IcarusError):
    """Too much of the pool is under reads that hang; only the end of the process stops those."""


async def watch(engine: EngineThread, max_quarantined_blocks: int) -> None:
    """Returns when the engine has stopped as it should.

    Raises EngineFailedError where a bug or a lost device ended it, QuarantineFullError past `max_quarantined_blocks`.
    """
    quarantine = asyncio.create_task(_watch_quarantine(engine, max_quarantined_blocks))
    ended = asyncio.wrap_future(engine.ended)
    try:
        done, _ = await asyncio.wait({quarantine, ended}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        quarantine.cancel()


async def _watch_quarantine(engine: EngineThread, max_blocks: int) -> None:
    while True:
        await asyncio.sleep(_PERIOD_SECONDS)
        with suppress(UnavailableError):  # the engine has failed, and `ended` tells
            pool = (await asyncio.wrap_future(engine.post(Engine.state))).pool
            if pool.quarantined > max_blocks:
                raise QuarantineFullError(
                    f"{pool.quarantined} of {pool.total} blocks are in quarantine, under reads from workers that hang "
                    f"or died; {max_blocks} may be ([transfer] max_quarantined_fraction)"
                )
