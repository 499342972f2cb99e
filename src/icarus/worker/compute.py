"""Settings of this process that the CPU's compute libraries keep, not we."""

import asyncio
import atexit
import ctypes
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import torch

T = TypeVar("T")

_passing: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
_EXIT_SECONDS = 5.0

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
    threads than there are cores, libgomp's do not spin any more (`thread_spins`): so the engine's is the only one. At
    its end a process waits for such threads, but not for ever: one may hang.
    """
    answer: Future[T] = Future()
    answer.set_running_or_notify_cancel()  # so that no waiter can cancel it

    def run() -> None:
        try:
            answer.set_result(function(*arguments))
        except BaseException as error:
            answer.set_exception(error)

    thread = threading.Thread(target=run, name="icarus-passing", daemon=True)
    _passing.add(thread)
    thread.start()
    return await asyncio.wrap_future(answer)


@atexit.register
def _wait_for_passing_threads() -> None:
    """One that comes back from torch while the interpreter ends would abort the process."""
    deadline = time.monotonic() + _EXIT_SECONDS
    for thread in list(_passing):
        thread.join(max(deadline - time.monotonic(), 0.0))


def _keep_freed_memory() -> None:
    """By default glibc maps each large temporary anew and unmaps it when freed: a quarter of a prefill's time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        mallopt(_M_TOP_PAD, 64 << 20)
