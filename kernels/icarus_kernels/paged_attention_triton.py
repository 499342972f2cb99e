"""Paged attention on a GPU: one kernel for decode, split over the keys, and for prefill, tiled over the queries.

A program takes a tile of one sequence's queries that read the same KV head (rows x heads of the group, flattened) and
walks over the keys that any of them sees: both queries of a paired token, and all heads of a group, read K and V once.
"""

# pyright: reportCallIssue=false

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from icarus_kernels.attention_rows import AttentionRows
from icarus_kernels.triton_launch import cdiv, count_processors, next_power_of_2

_NO_WINDOW = 2**31 - 1
_MIN_SPLIT_KEYS = 256
_MAX_SPLIT_KEYS = 4096
_PROGRAMS_PER_PROCESSOR = 4
_MAX_DECODE_ROWS = 2


@dataclass(frozen=True)
class Tile:
    """How the kernel is cut for one shape."""

    block_m: int
    """Queries: rows of a sequence times heads of a group. Of decode: at most."""
    block_n: int
    """Keys."""
    num_warps: int
    num_stages: int


# By bytes of an element and head_dim (rounded up). Pages are looked up before K and V are loaded: it takes five stages
# for the next keys to be on their way while these are computed; with fewer there is one buffer. What resources.md says
# of sm_80 must fit the 99 KiB of sm_86 and sm_89.
_DECODE_TILES = {
    (2, 64): Tile(64, 64, 4, 5),
    (2, 128): Tile(64, 64, 4, 5),
    (2, 256): Tile(32, 32, 4, 5),
    (4, 64): Tile(64, 32, 8, 3),
    (4, 128): Tile(64, 32, 8, 3),
    (4, 256): Tile(16, 32, 8, 3),
}
_PREFILL_TILES = {
    (2, 64): Tile(128, 64, 8, 5),
    (2, 128): Tile(128, 64, 8, 5),
    (2, 256): Tile(64, 32, 8, 3),
    (4, 64): Tile(64, 32, 8, 3),
    (4, 128): Tile(64, 32, 8, 3),
    (4, 256): Tile(16, 16, 8, 3),
}


def _tile(tiles: dict[tuple[int, int], Tile], query: Tensor) -> Tile:
    head_dim = query.shape[2]
    if head_dim > 256:
        raise ValueError(f"head_dim {head_dim} is more than the 256 that the attention kernel takes")
    return tiles[query.element_size(), next_power_of_2(head_dim, 64)]


def count_splits(max_keys: int, programs: int, processors: int) -> int:
    """Over how many programs the keys of each sequence go, where one split of all would take `programs`: enough to fill
    the device, none longer than `_MAX_SPLIT_KEYS`, none shorter than `_MIN_SPLIT_KEYS`."""
    wanted = max(cdiv(_PROGRAMS_PER_PROCESSOR * processors, programs), cdiv(max_keys, _MAX_SPLIT_KEYS))
    return min(wanted, cdiv(max_keys, _MIN_SPLIT_KEYS))


@triton.jit(do_not_specialize=["first_sequence", "window", "num_splits", "table_stride"])
def attend_kernel(
    query,
    pages,
    output,
    partials,
    logsums,
    row_ids,
    positions,
    starts,
    block_tables,
    first_sequence,
    window,
    num_splits,
    scale,
    query_row_stride,
    query_head_stride,
    output_row_stride,
    output_head_stride,
    page_stride,
    value_offset,
    token_stride,
    kv_head_stride,
    table_stride,
    num_heads,
    HEAD_DIM: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    SPLIT: tl.constexpr,
    MIN_SPLIT_KEYS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # The longest tiles, those of a chunk's end, start first.
    index = tl.num_programs(0) - 1 - tl.program_id(0)
    tile, split = index // num_splits, index % num_splits
    kv_head = tl.program_id(1)
    sequence = first_sequence + tl.program_id(2)
    first_entry = tl.load(starts + sequence)
    num_queries = (tl.load(starts + sequence + 1) - first_entry) * GROUP
    if tile * BLOCK_M >= num_queries:
        return

    queries = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    is_query = queries < num_queries
    entries = first_entry + queries // GROUP
    rows = tl.load(row_ids + entries, mask=is_query, other=0).to(tl.int64)
    heads = kv_head * GROUP + queries % GROUP
    position = tl.load(positions + entries, mask=is_query, other=-1)
    last = tl.max(position)
    key_start = tl.maximum(tl.min(tl.where(is_query, position, last)) - window + 1, 0)
    key_end = last + 1
    if SPLIT:
        share = tl.cdiv(tl.cdiv(key_end - key_start, num_splits), BLOCK_N) * BLOCK_N
        share = tl.maximum(share, MIN_SPLIT_KEYS)
        key_start += split * share
        key_end = tl.minimum(key_end, key_start + share)

    dims = tl.arange(0, BLOCK_D)
    is_dim = dims < HEAD_DIM
    q_mask = is_query[:, None] & is_dim[None, :]
    q = tl.load(
        query + (rows * query_row_stride + heads * query_head_stride)[:, None] + dims[None, :], mask=q_mask, other=0.0
    )
    table = block_tables + sequence.to(tl.int64) * table_stride
    head_pages = pages + kv_head.to(tl.int64) * kv_head_stride
    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(key_start, key_end, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        is_key = keys < key_end
        page = tl.load(table + keys // BLOCK_SIZE, mask=is_key, other=0).to(tl.int64)
        tokens = head_pages + page * page_stride + (keys % BLOCK_SIZE) * token_stride
        kv_mask = is_key[:, None] & is_dim[None, :]
        k = tl.load(tokens[:, None] + dims[None, :], mask=kv_mask, other=0.0)
        v = tl.load(tokens[:, None] + value_offset + dims[None, :], mask=kv_mask, other=0.0)

        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * 1.4426950408889634)
        seen = (keys[None, :] <= position[:, None]) & (keys[None, :] > position[:, None] - window) & is_key[None, :]
        scores = tl.where(seen, scores, -float("inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        # A row that saw nothing yet has no maximum to shift by.
        shift = tl.where(new_top == -float("inf"), 0.0, new_top)
        weights = tl.exp2(scores - shift[:, None])
        decay = tl.exp2(top - shift)
        total = total * decay + tl.sum(weights, 1)
        acc = tl.dot(weights.to(v.dtype), v, acc * decay[:, None], input_precision="ieee")
        top = new_top

    total = tl.where(total == 0.0, 1.0, total)
    acc = acc / total[:, None]
    if SPLIT:
        # An empty split says so by its logsum of -inf; its partial is neither written nor read.
        part = (entries.to(tl.int64) * num_heads + heads) * num_splits + split
        tl.store(logsums + part, top + tl.log2(total), mask=is_query)
        if key_start < key_end:
            tl.store(partials + part[:, None] * HEAD_DIM + dims[None, :], acc, mask=q_mask)
    else:
        offsets = (rows * output_row_stride + heads * output_head_stride)[:, None] + dims[None, :]
        tl.store(output + offsets, acc.to(output.dtype.element_ty), mask=q_mask)


@triton.jit(do_not_specialize=["num_sequences", "num_splits"])
def combine_kernel(
    partials,
    logsums,
    output,
    row_ids,
    starts,
    num_sequences,
    num_splits,
    output_row_stride,
    output_head_stride,
    HEAD_DIM: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One row and head: its splits' partials, weighted by their sums."""
    entry = tl.program_id(0)
    head = tl.program_id(1)
    if entry >= tl.load(starts + num_sequences):
        return
    row = tl.load(row_ids + entry).to(tl.int64)
    part = (entry.to(tl.int64) * tl.num_programs(1) + head) * num_splits
    dims = tl.arange(0, BLOCK_D)
    is_dim = dims < HEAD_DIM
    top = -float("inf")
    total = 0.0
    acc = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, num_splits, BLOCK_S):
        splits = start + tl.arange(0, BLOCK_S)
        sums = tl.load(logsums + part + splits, mask=splits < num_splits, other=-float("inf"))
        new_top = tl.maximum(top, tl.max(sums))
        shift = tl.where(new_top == -float("inf"), 0.0, new_top)
        weights = tl.exp2(sums - shift)
        mask = (sums > -float("inf"))[:, None] & is_dim[None, :]
        values = tl.load(partials + (part + splits)[:, None] * HEAD_DIM + dims[None, :], mask=mask, other=0.0)
        decay = tl.exp2(top - shift)
        total = total * decay + tl.sum(weights)
        acc = acc * decay + tl.sum(weights[:, None] * values, 0)
        top = new_top
    offsets = row * output_row_stride + head * output_head_stride + dims
    tl.store(output + offsets, (acc / total).to(output.dtype.element_ty), mask=is_dim)


def paged_attention_triton(
    query: Tensor, pages: Tensor, rows: AttentionRows, window: int | None = None, num_splits: int | None = None
) -> Tensor:
    """As `paged_attention`. Each sequence of decode is read in `num_splits` parts; None: as many as suit the device."""
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    num_chunks = rows.num_sequences - rows.num_decodes
    if rows.num_decodes:
        _decode(query, pages, output, rows, window, num_splits)
    if num_chunks:
        tile = _tile(_PREFILL_TILES, query)
        grid = (cdiv(rows.max_rows * _group(query, pages), tile.block_m), pages.shape[3], num_chunks)
        _attend(grid, tile, query, pages, output, rows, window, first_sequence=rows.num_decodes)
    return output


def _decode(
    query: Tensor, pages: Tensor, output: Tensor, rows: AttentionRows, window: int | None, num_splits: int | None
) -> None:
    heads, head_dim = query.shape[1:]
    kv_heads, num_queries = pages.shape[3], _MAX_DECODE_ROWS * _group(query, pages)
    tile = _tile(_DECODE_TILES, query)
    tile = replace(tile, block_m=min(next_power_of_2(num_queries, 16), tile.block_m))
    tiles = cdiv(num_queries, tile.block_m)
    if num_splits is None:
        keys = rows.max_keys if window is None else min(rows.max_keys, window)
        num_splits = count_splits(keys, tiles * kv_heads * rows.num_decodes, count_processors(query.device))
    if num_splits == 1:
        _attend((tiles, kv_heads, rows.num_decodes), tile, query, pages, output, rows, window)
        return
    parts = (_MAX_DECODE_ROWS * rows.num_decodes, heads, num_splits)
    partials = torch.empty(*parts, head_dim, dtype=torch.float32, device=query.device)
    logsums = torch.empty(parts, dtype=torch.float32, device=query.device)
    grid = (tiles * num_splits, kv_heads, rows.num_decodes)
    _attend(grid, tile, query, pages, output, rows, window, partials=partials, logsums=logsums)
    combine_kernel[parts[:2]](
        partials,
        logsums,
        output,
        rows.row_ids,
        rows.starts,
        rows.num_decodes,
        num_splits,
        output.stride(0),
        output.stride(1),
        HEAD_DIM=head_dim,
        BLOCK_S=16,
        BLOCK_D=next_power_of_2(head_dim),
        num_warps=2,
    )


def _attend(
    grid: tuple[int, int, int],
    tile: Tile,
    query: Tensor,
    pages: Tensor,
    output: Tensor,
    rows: AttentionRows,
    window: int | None,
    *,
    first_sequence: int = 0,
    partials: Tensor | None = None,
    logsums: Tensor | None = None,
) -> None:
    head_dim = query.shape[2]
    attend_kernel[grid](
        query,
        pages,
        output,
        partials,
        logsums,
        rows.row_ids,
        rows.positions,
        rows.starts,
        rows.block_tables,
        first_sequence,
        _NO_WINDOW if window is None else window,
        1 if partials is None else partials.shape[2],
        head_dim**-0.5,
        query.stride(0),
        query.stride(1),
        output.stride(0),
        output.stride(1),
        pages.stride(0),
        pages.stride(1),
        pages.stride(2),
        pages.stride(3),
        rows.block_tables.stride(0),
        query.shape[1],
        HEAD_DIM=head_dim,
        GROUP=_group(query, pages),
        BLOCK_SIZE=pages.shape[2],
        SPLIT=partials is not None,
        MIN_SPLIT_KEYS=_MIN_SPLIT_KEYS,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_D=next_power_of_2(head_dim, 16),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def _group(query: Tensor, pages: Tensor) -> int:
    """Query heads to a KV head."""
    return query.shape[1] // pages.shape[3]
