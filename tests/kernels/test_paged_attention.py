"""paged_attention against its naive reference, with everything that must not be read poisoned."""

from dataclasses import replace

import pytest
import torch
from icarus_kernels import AttentionRows, SequenceRows, paged_attention, paged_attention_reference

LAYERS, LAYER = 3, 1


def poisoned_pages(num_blocks, block_size, kv_heads, head_dim, rows, window=None, dtype=torch.float32):
    """One layer's pages, a strided view; NaN wherever there is no key that a row of a sequence sees."""
    pool = torch.full((num_blocks, LAYERS, 2, block_size, kv_heads, head_dim), torch.nan, dtype=dtype)
    pages, starts = pool[:, LAYER], rows.starts.tolist()
    for s, table in enumerate(rows.block_tables.tolist()):
        positions = rows.positions[starts[s] : starts[s + 1]].tolist()
        first = 0 if window is None else max(0, min(positions) - window + 1)
        for position in range(first, max(positions) + 1):
            page, offset = divmod(position, block_size)
            pages[table[page], :, offset] = torch.randn(2, kv_heads, head_dim).to(dtype)
    return pages


@pytest.mark.parametrize("group", [1, 3, 4])
@pytest.mark.parametrize("block_size", [4, 5, 16])
@pytest.mark.parametrize("window", [None, 1, 3, 4, 5, 16, 17, 33])
def test_mixed_rows_match_the_reference(group, block_size, window):
    torch.manual_seed(group)
    kv_heads, head_dim, blocks = 2, 10, torch.randperm(40).tolist()
    table = [blocks[i : i + 8] for i in range(0, 40, 8)]
    rows = AttentionRows.build(
        [
            SequenceRows([0, 1, 2, 7], [3, 4, 5, 5], table[0]),  # a chunk and its read row
            SequenceRows([3], [2 * block_size - 1], table[1]),  # ends with its block
            SequenceRows([4, 8], [2 * block_size] * 2, table[2]),  # paired, a block's first token
            SequenceRows([5, 6], [0, 1], table[3]),  # starts at the start
            SequenceRows([9], [0], table[4]),  # one key
        ],
        block_size,
    )
    pages = poisoned_pages(40, block_size, kv_heads, head_dim, rows, window)
    query = torch.randn(10, kv_heads * group, head_dim)
    got = paged_attention(query, pages, rows, window)
    torch.testing.assert_close(got, paged_attention_reference(query, pages, rows, window), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    torch.manual_seed(0)
    rows = AttentionRows.build([SequenceRows([0, 1], [36, 36], [3, 1, 0])], 16)
    pages = poisoned_pages(4, 16, 3, 64, rows, dtype=dtype)
    query = torch.randn(2, 9, 64).to(dtype)
    got = paged_attention(query, pages, rows)
    torch.testing.assert_close(got, paged_attention_reference(query, pages, rows), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(("group", "head_dim"), [(1, 64), (3, 64), (4, 128), (16, 64)])
@pytest.mark.parametrize("window", [None, 1, 63, 64, 200])
@pytest.mark.parametrize(("dtype", "block_size"), [(torch.bfloat16, 16), (torch.bfloat16, 20), (torch.float32, 16)])
@pytest.mark.parametrize(("lasts", "threads"), [((0, 62, 63, 64, 300), 1), ((0, 62, 63, 64, 300), 3), ((500,), 3)])
def test_decode(group, head_dim, window, dtype, block_size, lasts, threads):
    """Keys that end within a tile, at its end and in the next one; threads that share a sequence. bfloat16 has a kernel
    of its own where the processor multiplies it."""
    torch.manual_seed(group)
    kv_heads, before = 2, torch.get_num_threads()
    blocks, sequences, row = torch.randperm(60).tolist(), [], 0
    for i, last in enumerate(lasts):
        rows = [row] if i % 2 else [row, row + 1]
        row += len(rows)
        sequences.append(SequenceRows(rows, [last] * len(rows), [blocks.pop() for _ in range(last // block_size + 1)]))
    rows = AttentionRows.build(sequences, block_size)
    pages = poisoned_pages(60, block_size, kv_heads, head_dim, rows, window, dtype)
    query = torch.randn(row, kv_heads * group, head_dim).to(dtype)
    torch.set_num_threads(threads)
    try:
        got = paged_attention(query, pages, rows, window)
    finally:
        torch.set_num_threads(before)
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    expected = paged_attention_reference(query, pages, rows, window)
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("group", "head_dim"), [(1, 64), (3, 64), (5, 64), (4, 128), (64, 64)])
@pytest.mark.parametrize("window", [None, 1, 17, 64, 70])
def test_chunks_in_bfloat16(group, head_dim, window):
    """Chunks have a kernel of their own where the processor multiplies bfloat16. Several tiles of keys and rows."""
    torch.manual_seed(group)
    blocks = torch.randperm(32).tolist()
    rows = AttentionRows.build(
        [
            SequenceRows([4, 0], [20, 20], blocks[:2]),  # paired, beside the chunks
            SequenceRows([1, 2, 3, 5, 6], [0, 1, 2, 3, 3], blocks[2:3]),  # from the start, with its read row
            SequenceRows(list(range(7, 90)), list(range(75, 158)), blocks[3:13]),
        ],
        16,
    )
    pages = poisoned_pages(32, 16, 2, head_dim, rows, window, torch.bfloat16)
    query = torch.randn(90, 2 * group, head_dim).to(torch.bfloat16)
    got = paged_attention(query, pages, rows, window)
    torch.testing.assert_close(got, paged_attention_reference(query, pages, rows, window), atol=1e-2, rtol=1e-2)


def test_large_scores_do_not_overflow():
    """Scores of some hundreds, rising and falling over the tiles of keys."""
    torch.manual_seed(0)
    rows = AttentionRows.build([SequenceRows(list(range(20)), list(range(180, 200)), list(range(13)))], 16)
    pages = poisoned_pages(13, 16, 1, 64, rows, dtype=torch.bfloat16)
    pages[:, 0] *= torch.linspace(-8, 8, 13).to(torch.bfloat16)[:, None, None, None]
    query = 8 * torch.randn(20, 3, 64).to(torch.bfloat16)
    got = paged_attention(query, pages, rows)
    torch.testing.assert_close(got, paged_attention_reference(query, pages, rows), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_what_is_not_a_number_does_not_become_one(dtype, poison):
    """A query or a key that is not finite gives NaN, not something plausible; in decode and in a chunk."""
    torch.manual_seed(0)
    decode = SequenceRows([0, 1], [100, 100], list(range(7)))
    rows = AttentionRows.build([decode, SequenceRows(list(range(2, 10)), list(range(40, 48)), [7, 8, 9])], 16)
    pages, query = torch.randn(10, 2, 16, 3, 64).to(dtype), torch.randn(10, 9, 64).to(dtype)
    assert paged_attention(query, pages, rows).isfinite().all()
    found = paged_attention(query.index_fill(0, torch.tensor([1, 4]), poison), pages, rows).isnan().flatten(1)
    assert found.all(1).tolist() == found.any(1).tolist() == [row in (1, 4) for row in range(10)]
    pages[[3, 8], 0, 5, 1] = poison  # keys 53 and 21 of head 1
    found = paged_attention(query, pages, rows).isnan().all(2)
    assert found[:, 3:6].all() and not found[:, :3].any() and not found[:, 6:].any()


def test_queries_may_be_a_view():
    torch.manual_seed(0)
    rows = AttentionRows.build([SequenceRows([1], [6], [2, 0]), SequenceRows([0, 2], [1, 2], [1])], 4)
    pages = poisoned_pages(3, 4, 2, 8, rows)
    query = torch.randn(3, 10, 8)[:, :4]
    got = paged_attention(query, pages, rows)
    assert got.is_contiguous()
    torch.testing.assert_close(got, paged_attention_reference(query, pages, rows), atol=2e-6, rtol=1e-5)


def test_refuses_what_it_would_misread():
    rows = AttentionRows.build([SequenceRows([0], [2], [1])], 4)
    query, pages = torch.randn(1, 2, 16), torch.randn(2, 2, 4, 1, 16)
    for wrong_query, wrong_pages in (
        (query, pages.bfloat16()),
        (query.bfloat16(), pages),
        (torch.randn(1, 2, 32)[..., ::2], pages),
        (query, torch.randn(2, 2, 4, 1, 32)[..., ::2]),
    ):
        with pytest.raises(AssertionError):
            paged_attention(wrong_query, wrong_pages, rows)


def test_no_rows():
    rows = AttentionRows.build([], 4)
    assert paged_attention(torch.empty(0, 4, 8), torch.empty(2, 2, 4, 2, 8), rows).shape == (0, 4, 8)


def test_too_few_pages():
    with pytest.raises(ValueError, match="position 40 needs 3 pages of 16 tokens; its sequence has 1"):
        AttentionRows.build([SequenceRows([0], [40], [7])], 16)


def test_what_was_derived_of_other_rows_is_not_taken_over():
    torch.manual_seed(0)
    rows = AttentionRows.build([SequenceRows([0, 1, 2], [2, 3, 4], [1, 0])], 4)
    pages, query = torch.randn(4, 2, 4, 2, 8), torch.randn(3, 4, 8)
    paged_attention(query, pages, rows)
    moved = replace(rows, block_tables=torch.tensor([[3, 2]], dtype=torch.int32))
    torch.testing.assert_close(paged_attention(query, pages, moved), paged_attention_reference(query, pages, moved))


def test_decode_comes_before_chunks():
    rows = AttentionRows.build(
        [
            SequenceRows([0, 1, 2], [4, 5, 5], [7, 8, 9, 10]),
            SequenceRows([3, 5], [9, 9], [3, 1, 2, 4]),
            SequenceRows([4], [0], [6]),
        ],
        4,
    )
    assert (rows.num_decodes, rows.num_sequences, rows.max_rows, rows.max_keys) == (2, 3, 3, 10)
    assert rows.row_ids.tolist() == [3, 5, 4, 0, 1, 2] and rows.positions.tolist() == [9, 9, 0, 4, 5, 5]
    assert rows.starts.tolist() == [0, 2, 3, 6]
    assert rows.block_tables.tolist() == [[3, 1, 2], [6, 0, 0], [7, 8, 0]]
