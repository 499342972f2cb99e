"""Settings of this process that the CPU's compute libraries keep, not we."""

import ctypes
import sys

import torch

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def prepare_compute(num_threads: int) -> None:
    """`num_threads` 0 leaves torch's choice: one a core."""
    if num_threads:
        torch.set_num_threads(num_threads)
    if sys.platform == "linux":
        _keep_freed_memory()


def _keep_freed_memory() -> None:
    """By default glibc maps each large temporary anew and unmaps it when freed: a quarter of a prefill's time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        mallopt(_M_TOP_PAD, 64 << 20)
