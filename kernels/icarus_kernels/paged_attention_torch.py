"""Paged attention by torch: gathers the K and V of each sequence. For chunks, where that costs little, and for decode
with a head_dim that no kernel takes."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from icarus_kernels.attention_rows import AttentionRows


class _Gathered(NamedTuple):
    """What the rows of one sequence need of it."""

    row_ids: Tensor
    pages: Tensor
    """Those with a key that some row sees."""
    keys: slice
    """Which tokens of these pages: from the first that some row sees to the last row's."""
    mask: Tensor | None
    """[rows, keys], added to the scores: 0 where a row sees a key, else -inf. None where every row sees them all."""


def paged_attention_torch(
    query: Tensor, pages: Tensor, rows: AttentionRows, window: int | None, output: Tensor, first: int = 0
) -> None:
    """As `paged_attention`, into `output`; of the sequences from `first` on."""
    keys, values = pages[:, 0], pages[:, 1]
    at = first, window, query.dtype
    if at not in rows.derived:
        rows.derived[at] = _gather(rows, first, window, pages.shape[2], query.dtype)
    for sequence in rows.derived[at]:
        output[sequence.row_ids] = _attend(
            query[sequence.row_ids],
            keys.index_select(0, sequence.pages).flatten(0, 1)[sequence.keys],
            values.index_select(0, sequence.pages).flatten(0, 1)[sequence.keys],
            sequence.mask,
        )


def _gather(
    rows: AttentionRows, first: int, window: int | None, block_size: int, dtype: torch.dtype
) -> list[_Gathered]:
    starts = rows.starts.tolist()
    gathered = []
    for s in range(first, rows.num_sequences):
        table, entries = rows.block_tables[s], slice(starts[s], starts[s + 1])
        positions = rows.positions[entries]
        first_position, last_position = int(positions[0]), int(positions[-1])
        start, end = 0 if window is None else max(0, first_position - window + 1), last_position + 1
        page = start // block_size
        gathered.append(
            _Gathered(
                rows.row_ids[entries],
                table[page : (end - 1) // block_size + 1],
                slice(start - page * block_size, end - page * block_size),
                None if s < rows.num_decodes else _mask(positions, start, end, window, dtype),
            )
        )
    return gathered


def _mask(positions: Tensor, start: int, end: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """[rows, end - start], of the keys at positions start..end."""
    keys, rows = torch.arange(start, end, device=positions.device), positions.unsqueeze(1)
    hidden = keys > rows
    if window is not None:
        hidden |= keys <= rows - window
    return torch.zeros(hidden.shape, device=positions.device, dtype=dtype).masked_fill_(hidden, -torch.inf)


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
