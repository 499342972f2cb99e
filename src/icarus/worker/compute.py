"""Settings of this process that the CPU's compute libraries keep, not we."""

import asyncio
import ctypes
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
    threads than there are cores, libgomp's do not spin any more (`thread_spins`): so the engine's is the only one.
    """
    passing = ThreadPoolExecutor(max_workers=1)
    try:
        return await asyncio.get_running_loop().run_in_executor(passing, function, *arguments)
    finally:
        passing.shutdown(wait=False)


def _keep_freed_memory() -> None:
    """By default glibc maps each large temporary anew and unmaps it when freed: a quarter of a prefill's time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        mallopt(_M_TOP_PAD, 64 << 20)
