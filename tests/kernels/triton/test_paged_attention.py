"""The attention kernel against the naive reference, with everything that must not be read poisoned."""

from dataclasses import replace

import pytest
import torch
from icarus_kernels import AttentionRows, SequenceRows, paged_attention_reference, paged_attention_triton
from icarus_kernels.paged_attention_triton import count_splits

KV_HEADS = 2
TOLERANCE = {
    torch.float32: {"atol": 2e-6, "rtol": 1e-5},
    torch.float16: {"atol": 2e-3, "rtol": 2e-3},
    torch.bfloat16: {"atol": 2e-2, "rtol": 2e-2},
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def short_splits(monkeypatch):
    """So that the few keys of a test are worth splitting."""
    monkeypatch.setattr(paged_attention_triton, "_MIN_SPLIT_KEYS", 1)


def poisoned_pool(rows, window, block_size, kv_heads, head_dim, dtype):
    """NaN wherever there is no key of layer 1 that a row of a sequence sees."""
    num_blocks = int(rows.block_tables.max()) + 1
    pool = torch.full((num_blocks, 3, 2, block_size, kv_heads, head_dim), torch.nan, dtype=dtype)
    pages, starts = pool[:, 1], rows.starts.tolist()
    for s, table in enumerate(rows.block_tables.tolist()):
        positions = rows.positions[starts[s] : starts[s + 1]].tolist()
        if not positions:
            continue
        first = 0 if window is None else max(0, min(positions) - window + 1)
        for position in range(first, max(positions) + 1):
            page, offset = divmod(position, block_size)
            pages[table[page], :, offset] = torch.randn(2, kv_heads, head_dim).to(dtype)
    return pool


def check(rows, device, *, block_size=16, group=2, head_dim=16, window=None, dtype=torch.float32, num_splits=None):
    pool = poisoned_pool(rows, window, block_size, KV_HEADS, head_dim, dtype)
    pages = pool[:, 1]
    num_rows = int(rows.row_ids.max()) + 2  # the last row is of no sequence
    projected = torch.full((num_rows, KV_HEADS * group + 3, head_dim), torch.nan, dtype=dtype)
    query = projected[:, : KV_HEADS * group]
    query[:-1] = torch.randn(num_rows - 1, *query.shape[1:]).to(dtype)
    expected = paged_attention_reference(query, pages, rows, window)
    on_device = replace(
        rows,
        **{name: getattr(rows, name).to(device) for name in ("row_ids", "positions", "starts", "block_tables")},
    )
    query = projected.to(device)[:, : KV_HEADS * group]
    got = paged_attention_triton.paged_attention_triton(query, pool.to(device)[:, 1], on_device, window, num_splits)
    rows_of_some = rows.row_ids.long()
    torch.testing.assert_close(got.cpu()[rows_of_some], expected[rows_of_some], **TOLERANCE[dtype])
    assert got.cpu()[-1].isnan().all(), "a row of no sequence is not written"


def mixed_rows(block_size):
    blocks = torch.randperm(60).tolist()
    tables = [blocks[i : i + 12] for i in range(0, 60, 12)]
    return AttentionRows.build(
        [
            SequenceRows([0, 1, 2, 7], [3, 4, 5, 5], tables[0]),  # a chunk and its read row
            SequenceRows([3], [2 * block_size - 1], tables[1]),  # ends with its block
            SequenceRows([4, 8], [5 * block_size] * 2, tables[2]),  # paired, a block's first token
            SequenceRows([5, 6], [4 * block_size - 2, 4 * block_size - 1], tables[3]),
            SequenceRows([9], [0], tables[4]),  # one key
        ],
        block_size,
    )


@pytest.mark.parametrize(
    ("block_size", "group", "head_dim", "window", "num_splits"),
    [
        (16, 1, 64, None, 1),
        (16, 3, 20, None, 3),
        (16, 3, 64, 1, 2),
        (16, 4, 128, 17, 5),
        (32, 3, 64, 33, 1),
        (32, 4, 80, None, 4),
        (32, 7, 16, 40, 3),
        (16, 2, 256, 16, 2),
        (5, 3, 10, 7, 2),
    ],
)
def test_mixed_rows_match_the_reference(device, block_size, group, head_dim, window, num_splits):
    rows = mixed_rows(block_size)
    check(rows, device, block_size=block_size, group=group, head_dim=head_dim, window=window, num_splits=num_splits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_splits", [1, 2])
def test_half_precision(device, dtype, num_splits):
    check(mixed_rows(16), device, group=3, head_dim=64, dtype=dtype, num_splits=num_splits)


@pytest.mark.parametrize("window", [None, 20])
def test_a_chunk_of_several_tiles_after_a_cached_prefix(device, window):
    table = torch.randperm(9).tolist()
    rows = AttentionRows.build([SequenceRows(range(50), range(37, 87), table)], 16)
    check(rows, device, group=3, window=window)


def test_a_group_of_more_heads_than_a_tile(device):
    rows = AttentionRows.build([SequenceRows([0, 1], [40, 40], [2, 0, 1]), SequenceRows([2], [3], [3])], 16)
    check(rows, device, group=40, num_splits=2)


@pytest.mark.parametrize("num_splits", [1, 3])
def test_sequences_without_rows(device, num_splits):
    """As in a captured batch that is not full."""
    rows = mixed_rows(16)
    padded = replace(
        rows,
        starts=torch.cat((rows.starts[:1], rows.starts)),
        block_tables=torch.cat((rows.block_tables[:1], rows.block_tables)),
        num_decodes=rows.num_decodes + 1,
    )
    check(padded, device, num_splits=num_splits)


def test_no_rows(device):
    query, pages = torch.empty(0, 4, 16, device=device), torch.empty(2, 2, 16, 2, 16, device=device)
    rows = AttentionRows.build([], 16, device)
    assert paged_attention_triton.paged_attention_triton(query, pages, rows).shape == (0, 4, 16)


def test_a_head_too_wide_is_refused(device):
    query, pages = torch.empty(1, 1, 257, device=device), torch.empty(1, 2, 16, 1, 257, device=device)
    with pytest.raises(ValueError, match="257 is more than the 256"):
        paged_attention_triton.paged_attention_triton(
            query, pages, AttentionRows.build([SequenceRows([0], [0], [0])], 16, device)
        )


def test_splits_fill_the_device_and_are_neither_short_nor_long(monkeypatch):
    monkeypatch.setattr(paged_attention_triton, "_MIN_SPLIT_KEYS", 256)
    assert count_splits(max_keys=8192, programs=8, processors=132) == 32, "as many as have 256 keys"
    assert count_splits(max_keys=100_000, programs=8, processors=132) == 66, "4 programs a processor"
    assert count_splits(max_keys=8192, programs=10_000, processors=132) == 2, "none of more than 4,096 keys"
    assert count_splits(max_keys=200, programs=1, processors=132) == 1


def test_more_than_2_31_elements(device):
    if device.type != "cuda":
        pytest.skip("the interpreter would copy a pool of 4 GiB")
    torch.use_deterministic_algorithms(False)
    num_blocks = 2**31 // (2 * 16 * 2 * 64) + 2
    pages = torch.empty(num_blocks, 2, 16, 2, 64, dtype=torch.bfloat16, device=device)
    table = [num_blocks - 1, 0, num_blocks - 2]
    pages[table] = torch.randn(3, 2, 16, 2, 64, dtype=torch.bfloat16, device=device)
    query = torch.randn(4, 4, 64, dtype=torch.bfloat16, device=device)
    for sequences in ([SequenceRows([0, 1], [40, 40], table)], [SequenceRows([0, 1, 2, 3], [37, 38, 39, 40], table)]):
        rows = AttentionRows.build(sequences, 16, device)
        got = paged_attention_triton.paged_attention_triton(query, pages, rows)[: len(rows.row_ids)]
        expected = paged_attention_reference(query, pages, rows)[: len(rows.row_ids)]
        torch.testing.assert_close(got, expected, atol=2e-2, rtol=2e-2)
