"""The KV pool's memory. Which block holds what is `cache/pool.py`'s business."""

import ctypes
import math
import os
import re
import sys
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from icarus.cache.control_groups import room_in_groups
from icarus.errors import ConfigError

LAYOUT = "block layer kv token head dim"
"""The order of the pool's dimensions; part of `cache_fingerprint`."""


class KVShape(Protocol):
    """The part of a model's configuration that shapes its KV."""

    @property
    def num_layers(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...


class KVPool:
    """One allocation, block-major: a block of all layers is contiguous, so one read moves it."""

    def __init__(self, shape: KVShape, num_blocks: int, block_size: int, dtype: str, device: str | torch.device):
        """`dtype` by torch's name. Writes every page once: reads into untouched pages are 30 times slower.

        Raises ConfigError where the device has no room for it.
        """
        block = (shape.num_layers, 2, block_size, shape.num_kv_heads, shape.head_dim)
        memory = _allocate(num_blocks, block, getattr(torch, dtype), torch.device(device))
        _prefer_huge_pages(memory)
        self.tensor = memory.fill_(0)
        """[num_blocks, num_layers, 2, block_size, num_kv_heads, head_dim], contiguous; keys first."""

    @property
    def num_blocks(self) -> int:
        return self.tensor.shape[0]

    @property
    def block_size(self) -> int:
        return self.tensor.shape[3]

    @property
    def block_bytes(self) -> int:
        """Of all layers."""
        return self.tensor[0].nbytes

    def layer(self, index: int) -> Tensor:
        """The pages of one layer, a view: [num_blocks, 2, block_size, num_kv_heads, head_dim]."""
        return self.tensor[:, index]


def _allocate(num_blocks: int, block: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    block_bytes = math.prod(block) * dtype.itemsize
    try:
        if device.type == "cpu" and num_blocks * block_bytes > min((_machine_bytes(), *room_in_groups())):
            # The system might promise it, and would kill the process that takes it at its word.
            raise MemoryError("more than the machine or the container has")
        return torch.empty((num_blocks, *block), dtype=dtype, device=device)
    except torch.AcceleratorError:
        raise
    except (MemoryError, RuntimeError) as error:  # of which torch.OutOfMemoryError is one
        free = _free_bytes(device)
        raise ConfigError(
            f"[cache] num_blocks = {num_blocks} does not fit on device {device.type!r}: a block takes {block_bytes:,} "
            f"bytes and all of them {num_blocks * block_bytes:,}, of which {free:,} are free, enough for "
            f"{free // block_bytes}; a step needs some of that too"
        ) from error


def _free_bytes(device: torch.device) -> int:
    """Of the device, or what a container may still take of it. Of a machine that is not Linux, which does not say it
    simply, all that it has."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if sys.platform == "linux" and (line := re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())):
        return min((int(line[1]) * 1024, *room_in_groups()))
    return _machine_bytes()


def _machine_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


_PAGE_BYTES = 4096
_MADV_HUGEPAGE = 14
"""Linux's mman.h"""


def _prefer_huge_pages(memory: Tensor) -> None:
    """Of untouched memory. A sequence's blocks lie all over the pool: with pages of 4 KiB, decode's attention waits
    for the page table a seventh of its time."""
    if sys.platform != "linux" or memory.device.type != "cpu":
        return
    start = -(-memory.data_ptr() // _PAGE_BYTES) * _PAGE_BYTES
    size = memory.data_ptr() + memory.nbytes - start
    if size > 0:  # where the kernel refuses, the pool works as well, a little slower
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), _MADV_HUGEPAGE)
