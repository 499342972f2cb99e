"""Writing K and V into pages on a GPU."""

# pyright: reportCallIssue=false

import triton
import triton.language as tl
from torch import Tensor

from icarus_kernels.triton_launch import next_power_of_2


@triton.jit
def store_kernel(
    pages,
    slots,
    keys,
    values,
    num_heads,
    page_stride,
    value_offset,
    token_stride,
    head_stride,
    key_row_stride,
    key_head_stride,
    value_row_stride,
    value_head_stride,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    if slot < 0:
        return
    heads = tl.arange(0, BLOCK_H)[:, None]
    dims = tl.arange(0, BLOCK_D)[None, :]
    mask = (heads < num_heads) & (dims < HEAD_DIM)
    key = tl.load(keys + row * key_row_stride + heads * key_head_stride + dims, mask=mask)
    value = tl.load(values + row * value_row_stride + heads * value_head_stride + dims, mask=mask)
    token = pages + slot // BLOCK_SIZE * page_stride + slot % BLOCK_SIZE * token_stride
    target = token + heads * head_stride + dims
    tl.store(target, key, mask=mask)
    tl.store(target + value_offset, value, mask=mask)


def store_kv_triton(pages: Tensor, slots: Tensor, keys: Tensor, values: Tensor) -> None:
    """As `store_kv`: a captured batch is filled up with rows whose slot is negative."""
    rows, heads, head_dim = keys.shape
    if rows == 0:
        return
    store_kernel[(rows,)](
        pages,
        slots,
        keys,
        values,
        heads,
        pages.stride(0),
        pages.stride(1),
        pages.stride(2),
        pages.stride(3),
        keys.stride(0),
        keys.stride(1),
        values.stride(0),
        values.stride(1),
        HEAD_DIM=head_dim,
        BLOCK_SIZE=pages.shape[2],
        BLOCK_H=next_power_of_2(heads),
        BLOCK_D=next_power_of_2(head_dim),
        num_warps=4,
    )
