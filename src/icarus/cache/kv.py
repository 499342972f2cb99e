"""The KV pool's memory. Which block holds what is `cache/pool.py`'s business."""

import ctypes
import sys
from typing import Protocol

import torch
from torch import Tensor

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
        """`dtype` by torch's name. Writes every page once: reads into untouched pages are 30 times slower."""
        dims = (num_blocks, shape.num_layers, 2, block_size, shape.num_kv_heads, shape.head_dim)
        memory = torch.empty(dims, dtype=getattr(torch, dtype), device=device)
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
