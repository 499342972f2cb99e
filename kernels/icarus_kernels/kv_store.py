"""Writes K and V of new tokens into pages."""

import torch
from torch import Tensor

from icarus_kernels.kv_store_cpu import store_kv_cpu


def store_kv(pages: Tensor, slots: Tensor, keys: Tensor, values: Tensor) -> None:
    """Row i of `keys` and `values` goes to token `slots[i]` of the pool, nowhere if that is negative; nothing else is
    touched.

    pages         [num_blocks, 2, block_size, kv_heads, head_dim], any strides but that the last is 1
    slots         [rows] int64, contiguous: block * block_size + offset, distinct, or negative
    keys, values  [rows, kv_heads, head_dim], any strides but that the last is 1, of the pages' dtype
    """
    assert slots.dtype is torch.int64 and slots.is_contiguous(), f"slots are {slots.dtype}, strides {slots.stride()}"
    assert keys.dtype is values.dtype is pages.dtype, f"keys {keys.dtype}, values {values.dtype}, pages {pages.dtype}"
    assert keys.stride(2) == values.stride(2) == pages.stride(4) == 1, "numbers of a head do not lie side by side"
    assert slots.is_cuda is pages.is_cuda, f"slots are on {slots.device}, the pages on {pages.device}"
    if pages.is_cuda:
        from icarus_kernels.kv_store_triton import store_kv_triton

        store_kv_triton(pages, slots, keys, values)
    else:
        store_kv_cpu(pages, slots, keys, values)


def store_kv_reference(pages: Tensor, slots: Tensor, keys: Tensor, values: Tensor) -> None:
    """The same, one row at a time."""
    for slot, key, value in zip(slots.tolist(), keys, values, strict=True):
        if slot >= 0:
            block, offset = divmod(slot, pages.shape[2])
            pages[block, 0, offset] = key
            pages[block, 1, offset] = value
