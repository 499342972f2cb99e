"""Attention of a batch's rows over the paged K and V of their sequences, causal by position, windowed or not."""

import torch
from torch import Tensor

from icarus_kernels.attention_rows import AttentionRows
from icarus_kernels.paged_attention_cpu import paged_attention_cpu


def paged_attention(query: Tensor, pages: Tensor, rows: AttentionRows, window: int | None = None) -> Tensor:
    """softmax(q k / sqrt(head_dim)) v; query head h reads KV head h // (heads / kv_heads).

    query    [any, heads, head_dim], any strides but that the last is 1; entry i of `rows` is row `row_ids[i]`
    pages    [num_blocks, 2, block_size, kv_heads, head_dim] of query's dtype, any strides but that the last is 1; keys
             at [:, 0], values at [:, 1]
    returns  the shape of query, contiguous; rows that are not in `rows` are undefined
    """
    assert query.dtype is pages.dtype, f"query is {query.dtype}, the pages are {pages.dtype}"
    assert query.stride(2) == pages.stride(4) == 1, f"strides are {query.stride()}, {pages.stride()}"
    assert query.is_cuda is rows.row_ids.is_cuda, f"query is on {query.device}, the rows are on {rows.row_ids.device}"
    if query.is_cuda:
        from icarus_kernels.paged_attention_triton import paged_attention_triton

        return paged_attention_triton(query, pages, rows, window)
    return paged_attention_cpu(query, pages, rows, window)


def paged_attention_reference(query: Tensor, pages: Tensor, rows: AttentionRows, window: int | None = None) -> Tensor:
    """The same, one row, one head and one key at a time, in float64."""
    output = torch.full(query.shape, torch.nan, dtype=query.dtype, device=query.device)
    heads, head_dim = query.shape[1:]
    block_size, kv_heads = pages.shape[2:4]
    starts, row_ids, positions = rows.starts.tolist(), rows.row_ids.tolist(), rows.positions.tolist()
    for s, table in enumerate(rows.block_tables.tolist()):
        for entry in range(starts[s], starts[s + 1]):
            row, position = row_ids[entry], positions[entry]
            first = 0 if window is None else max(0, position - window + 1)
            slots = [divmod(p, block_size) for p in range(first, position + 1)]
            for head in range(heads):
                kv_head = head // (heads // kv_heads)
                keys = torch.stack([pages[table[b], 0, o, kv_head] for b, o in slots]).double()
                values = torch.stack([pages[table[b], 1, o, kv_head] for b, o in slots]).double()
                weights = (keys @ query[row, head].double() / head_dim**0.5).softmax(0)
                output[row, head] = (weights @ values).to(query.dtype)
    return output
