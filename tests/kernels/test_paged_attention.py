"""paged_attention against its naive reference, with everything that must not be read poisoned."""

import pytest
import torch
from icarus_kernels import SequenceRows, paged_attention, paged_attention_reference

LAYERS, LAYER = 3, 1


def poisoned_pages(num_blocks, block_size, kv_heads, head_dim, sequences, dtype=torch.float32):
    """One layer's pages, a strided view; NaN wherever there is no key that a row of a sequence sees."""
    pool = torch.full((num_blocks, LAYERS, 2, block_size, kv_heads, head_dim), torch.nan, dtype=dtype)
    pages = pool[:, LAYER]
    for sequence in sequences:
        positions = sequence.positions.tolist()
        first = 0 if sequence.window is None else max(0, min(positions) - sequence.window + 1)
        for position in range(first, max(positions) + 1):
            block = sequence.block_ids[position // block_size - sequence.first_block]
            pages[block, :, position % block_size] = torch.randn(2, kv_heads, head_dim).to(dtype)
    return pages


@pytest.mark.parametrize("group", [1, 3, 4])
@pytest.mark.parametrize("block_size", [4, 5, 16])
@pytest.mark.parametrize("window", [None, 1, 3, 4, 5, 16, 17, 33])
def test_mixed_rows_match_the_reference(group, block_size, window):
    torch.manual_seed(group)
    kv_heads, head_dim, blocks = 2, 10, torch.randperm(40).tolist()
    table = [blocks[i : i + 8] for i in range(0, 40, 8)]
    sequences = [
        SequenceRows.build([0, 1, 2, 7], [3, 4, 5, 5], table[0], block_size, "cpu", window),  # a chunk and its read row
        SequenceRows.build([3], [2 * block_size - 1], table[1], block_size, "cpu", window),  # ends with its block
        SequenceRows.build(
            [4, 8], [2 * block_size] * 2, table[2], block_size, "cpu", window
        ),  # paired, a block's first token
        SequenceRows.build([5, 6], [0, 1], table[3], block_size, "cpu", window),  # starts at the start
        SequenceRows.build([9], [0], table[4], block_size, "cpu", window),  # one key
    ]
    pages = poisoned_pages(40, block_size, kv_heads, head_dim, sequences)
    query = torch.randn(10, kv_heads * group, head_dim)
    got = paged_attention(query, pages, sequences)
    torch.testing.assert_close(got, paged_attention_reference(query, pages, sequences), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    torch.manual_seed(0)
    sequences = [SequenceRows.build([0, 1], [36, 36], [3, 1, 0], 16, "cpu")]
    pages = poisoned_pages(4, 16, 3, 64, sequences, dtype)
    query = torch.randn(2, 9, 64).to(dtype)
    got = paged_attention(query, pages, sequences)
    torch.testing.assert_close(got, paged_attention_reference(query, pages, sequences), atol=2e-2, rtol=2e-2)


def test_no_rows():
    assert paged_attention(torch.empty(0, 4, 8), torch.empty(2, 2, 4, 2, 8), []).shape == (0, 4, 8)


def test_decode_needs_no_mask_and_prefill_does():
    assert SequenceRows.build([0, 5], [7, 7], [0, 1], 4, "cpu").mask is None
    mask = SequenceRows.build([0, 1], [6, 7], [0, 1], 4, "cpu").mask
    assert mask is not None and (mask == 0).sum(1).tolist() == [7, 8]


@pytest.mark.parametrize(
    ("positions", "window", "blocks", "keys"),
    [
        ([20], None, [10, 11, 12, 13, 14, 15], slice(0, 21)),
        ([20], 21, [10, 11, 12, 13, 14, 15], slice(0, 21)),
        ([20], 20, [10, 11, 12, 13, 14, 15], slice(1, 21)),
        ([19, 19], 8, [13, 14], slice(0, 8)),  # the window is two whole blocks
        ([20, 20], 8, [13, 14, 15], slice(1, 9)),
        ([20], 1, [15], slice(0, 1)),
        ([19], 1, [14], slice(3, 4)),
        ([14, 15, 16], 4, [12, 13, 14], slice(3, 9)),  # the first row sees from 11 on
    ],
)
def test_blocks_outside_the_window_are_not_read(positions, window, blocks, keys):
    rows = SequenceRows.build(range(len(positions)), positions, list(range(10, 20)), 4, "cpu", window)
    assert (rows.block_ids.tolist(), rows.keys, rows.first_block) == (blocks, keys, blocks[0] - 10)


def test_a_chunks_rows_slide():
    mask = SequenceRows.build([0, 1, 2, 3], [5, 6, 7, 7], [0, 1], 4, "cpu", 3).mask
    assert mask is not None and (mask == 0).int().tolist() == [
        [1, 1, 1, 0, 0],
        [0, 1, 1, 1, 0],
        [0, 0, 1, 1, 1],
        [0, 0, 1, 1, 1],
    ]
