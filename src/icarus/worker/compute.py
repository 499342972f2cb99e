"""Settings of this process that the CPU's compute libraries keep, not we."""

import asyncio
import ctypes
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import torch

T = TypeVar("T")

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def prepare_compute(num_threads: int) -> None:
    """`num_threads` 0 leaves torch's choice: one a core."""
    if num_threads:
        torch.set_num_threads(num_threads)
    if sys.platform == "linux":
        _keep_freed_memory()


async def run_in_passing_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Runs what may compute in a thread of its own that ends with it.

    OpenMP gives every thread that computes a team, and keeps it as long as that thread lives. Where teams have more
    threads than there are cores, libgomp's do not spin any more (`thread_spins`): so the engine's is the only one. A
    process does not wait at its end for a thread that hangs.
    """
    answer: Future[T] = Future()
    answer.set_running_or_notify_cancel()  # so that no waiter can cancel it

    def run() -> None:
        try:
            answer.set_result(function(*arguments))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, name="icarus-passing", daemon=True).start()
    return await asyncio.wrap_future(answer)


def _keep_freed_memory() -> None:
    """By default glibc maps each large temporary anew and unmaps it when freed: a quarter of a prefill's time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        mallopt(_M_TOP_PAD, 64 << 20)
