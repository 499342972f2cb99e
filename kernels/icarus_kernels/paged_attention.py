"""Attention of a batch's rows over the paged K and V of their sequences, causal by position, windowed or not."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True, eq=False)
class SequenceRows:
    """The query rows of one sequence. They attend in one call, so its K and V are read once.

    A row at position p sees the keys of positions 0..p, or with a window those of (p - window, p]. Rows may share a
    position (the two streams of a token).
    """

    rows: slice | Tensor
    """Which rows of the batch: a slice with bounds where they are contiguous, else int64 indices."""
    positions: Tensor
    """[rows] int64."""
    window: int | None
    first_block: int
    """The sequence's first page that some row sees: those before it are not read."""
    block_ids: Tensor
    """[pages] int64: the sequence's pages from `first_block` to that of the last row, in order."""
    keys: slice
    """Which tokens of these pages: from the first that some row sees to the last row's."""
    mask: Tensor | None
    """[rows, keys] float32, added to the scores: 0 where a row sees a key, else -inf. None where every row sees them
    all (decode)."""

    @classmethod
    def build(
        cls,
        row_ids: Sequence[int],
        positions: Sequence[int],
        block_ids: Sequence[int],
        block_size: int,
        device: str | torch.device,
        window: int | None = None,
    ) -> "SequenceRows":
        """`block_ids` is the sequence's whole table; it may be longer than needed."""
        first_row, last_row = row_ids[0], row_ids[-1]
        contiguous = list(row_ids) == list(range(first_row, last_row + 1))
        on_device = torch.tensor(positions, device=device)
        start = 0 if window is None else max(0, min(positions) - window + 1)
        end = max(positions) + 1
        first_block = start // block_size
        offset = first_block * block_size
        return cls(
            rows=slice(first_row, last_row + 1) if contiguous else torch.tensor(row_ids, device=device),
            positions=on_device,
            window=window,
            first_block=first_block,
            block_ids=torch.tensor(block_ids[first_block : -(-end // block_size)], device=device),
            keys=slice(start - offset, end - offset),
            mask=None if min(positions) == end - 1 else _mask(on_device, start, end, window),
        )


def _mask(positions: Tensor, start: int, end: int, window: int | None) -> Tensor:
    """[rows, end - start], of the keys at positions start..end."""
    keys, rows = torch.arange(start, end, device=positions.device), positions.unsqueeze(1)
    hidden = keys > rows
    if window is not None:
        hidden |= keys <= rows - window
    return torch.zeros(hidden.shape, device=positions.device).masked_fill_(hidden, -torch.inf)


def paged_attention(query: Tensor, pages: Tensor, sequences: Sequence[SequenceRows]) -> Tensor:
    """softmax(q k / sqrt(head_dim)) v; query head h reads KV head h // (heads / kv_heads).

    query    [rows, heads, head_dim]
    pages    [num_blocks, 2, block_size, kv_heads, head_dim], any strides; keys at [:, 0], values at [:, 1]
    returns  [rows, heads, head_dim]; rows of no sequence are undefined
    """
    output = torch.empty_like(query)
    keys, values = pages[:, 0], pages[:, 1]
    for sequence in sequences:
        output[sequence.rows] = _attend(
            query[sequence.rows],
            keys.index_select(0, sequence.block_ids).flatten(0, 1)[sequence.keys],
            values.index_select(0, sequence.block_ids).flatten(0, 1)[sequence.keys],
            None if sequence.mask is None else sequence.mask.to(query.dtype),
        )
    return output


def _attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """query [rows, heads, head_dim]; keys, values [num_keys, kv_heads, head_dim] -> [rows, heads, head_dim]."""
    rows, heads, head_dim = query.shape
    kv_heads = keys.shape[1]
    keys, values = keys.transpose(0, 1).unsqueeze(0), values.transpose(0, 1).unsqueeze(0)
    if mask is not None:
        out = scaled_dot_product_attention(
            query.transpose(0, 1).unsqueeze(0), keys, values, attn_mask=mask, enable_gqa=kv_heads != heads
        )
        return out.squeeze(0).transpose(0, 1)
    # Without a mask rows and the heads of a group are alike: fold them, so that each K and V head is read once.
    folded = query.view(rows, kv_heads, -1, head_dim).transpose(0, 1).reshape(1, kv_heads, -1, head_dim)
    out = scaled_dot_product_attention(folded, keys, values)
    return out.view(kv_heads, rows, -1, head_dim).transpose(0, 1).reshape(rows, heads, head_dim)


def paged_attention_reference(query: Tensor, pages: Tensor, sequences: Sequence[SequenceRows]) -> Tensor:
    """The same, one row, one head and one key at a time, in float64."""
    output = torch.full_like(query, torch.nan)
    heads, head_dim = query.shape[1:]
    block_size, kv_heads = pages.shape[2:4]
    for sequence in sequences:
        row_ids = torch.arange(len(query), device=query.device)[sequence.rows].tolist()
        for row, position in zip(row_ids, sequence.positions.tolist(), strict=True):
            first = 0 if sequence.window is None else max(0, position - sequence.window + 1)
            slots = [divmod(p - sequence.first_block * block_size, block_size) for p in range(first, position + 1)]
            for head in range(heads):
                kv_head = head // (heads // kv_heads)
                keys = torch.stack([pages[sequence.block_ids[b], 0, o, kv_head] for b, o in slots]).double()
                values = torch.stack([pages[sequence.block_ids[b], 1, o, kv_head] for b, o in slots]).double()
                weights = (keys @ query[row, head].double() / head_dim**0.5).softmax(0)
                output[row, head] = (weights @ values).to(query.dtype)
    return output
