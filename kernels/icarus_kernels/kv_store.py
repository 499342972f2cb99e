"""Writes K and V of new tokens into pages."""

from torch import Tensor


def store_kv(pages: Tensor, slots: Tensor, keys: Tensor, values: Tensor) -> None:
    """Row i of `keys` and `values` goes to token `slots[i]` of the pool; nothing else is touched.

    pages   [num_blocks, 2, block_size, kv_heads, head_dim], any strides
    slots   [rows] int64, block * block_size + offset, distinct
    keys, values  [rows, kv_heads, head_dim]
    """
    if pages.is_cuda:
        from icarus_kernels.kv_store_triton import store_kv_triton

        store_kv_triton(pages, slots, keys, values)
        return
    block_size = pages.shape[2]
    blocks, offsets = slots // block_size, slots % block_size
    pages[blocks, 0, offsets] = keys
    pages[blocks, 1, offsets] = values


def store_kv_reference(pages: Tensor, slots: Tensor, keys: Tensor, values: Tensor) -> None:
    """The same, one row at a time."""
    for slot, key, value in zip(slots.tolist(), keys, values, strict=True):
        block, offset = divmod(slot, pages.shape[2])
        pages[block, 0, offset] = key
        pages[block, 1, offset] = value
