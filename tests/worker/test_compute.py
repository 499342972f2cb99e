"""Where a worker computes."""

import asyncio
import threading

import pytest

from icarus.worker.compute import run_in_passing_thread


async def test_the_thread_is_another_and_ends():
    thread = await run_in_passing_thread(threading.current_thread)
    assert thread is not threading.current_thread()
    thread.join(10)
    assert not thread.is_alive()


async def test_the_loop_goes_on_and_errors_come_through():
    go_on = threading.Event()

    def fail() -> None:
        assert go_on.wait(20)
        raise ValueError("no")

    asyncio.get_running_loop().call_soon(go_on.set)
    with pytest.raises(ValueError, match="no"):
        await run_in_passing_thread(fail)
