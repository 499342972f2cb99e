"""The LoRA kernels over batches of different adapter popularity (distinct, uniform, skewed, identical)."""

import pytest
import torch
from icarus_kernels import Columns, LoraRows, LoraSegment, LoraTable, add_segmented_lora_reference
from icarus_kernels.segmented_lora_triton import add_segmented_lora_triton, count_splits

IN = 300
COLUMNS = (Columns(0, 0, 23), Columns(3, 23, 31), Columns(1, 40, 200))
"""Columns 31 to 39 and 200 are of no module."""
WIDTH, LAYER = 201, 1
TOLERANCE = {
    torch.float32: {"atol": 2e-5, "rtol": 1e-5},
    torch.float16: {"atol": 1e-2, "rtol": 1e-2},
    torch.bfloat16: {"atol": 1e-1, "rtol": 2e-2},
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def adapter(rank, dtype, device, columns=COLUMNS, layer=LAYER):
    pairs = {
        (layer, c.module): (
            (torch.randn(rank, IN) / IN**0.5).to(device, dtype),
            torch.randn(c.end - c.start, rank).to(device, dtype),
        )
        for c in columns
    }
    return LoraTable.build(pairs, num_layers=3, num_modules=4)


def check(segments, num_rows, device, dtype=torch.float32, num_splits=None):
    inside = torch.zeros(num_rows, dtype=torch.bool, device=device)
    for segment in segments:
        inside[segment.start : segment.end] = True
    x = torch.randn(num_rows, IN).to(device, dtype)
    x[~inside] = torch.nan  # rows of the base are not read
    before = torch.randn(num_rows, WIDTH).to(device, dtype)
    got, expected = before.clone(), before.clone()
    rows = LoraRows.build(segments, device)
    add_segmented_lora_triton(got, x, rows, LAYER, COLUMNS, num_splits)
    add_segmented_lora_reference(expected, x, rows, LAYER, COLUMNS)
    torch.testing.assert_close(got, expected, **TOLERANCE[dtype])
    assert torch.equal(got[~inside], before[~inside])
    assert torch.equal(got[:, 31:40], before[:, 31:40]) and torch.equal(got[:, 200], before[:, 200])
    add_segmented_lora_triton(got.copy_(before), x, rows, LAYER + 1, COLUMNS, num_splits)
    assert torch.equal(got, before), "a layer that no adapter changes"


@pytest.mark.parametrize(
    ("sizes", "dtype", "num_splits"),
    [
        pytest.param([1] * 4, torch.float32, 4, id="distinct"),
        pytest.param([3, 3, 3], torch.float32, 1, id="uniform"),
        pytest.param([17, 1, 2], torch.float32, 2, id="skewed"),
        pytest.param([13], torch.float32, None, id="identical"),
        pytest.param([70, 2], torch.float32, 1, id="many"),
        pytest.param([17, 1, 2], torch.bfloat16, 2, id="bfloat16"),
        pytest.param([3, 1], torch.float16, 1, id="float16"),
    ],
)
def test_matches_the_reference(device, sizes, dtype, num_splits):
    start, segments = 2, []
    for i, size in enumerate(sizes):
        columns = COLUMNS[i % 2 :]
        segments.append(LoraSegment(start, start + size, adapter(1 + 9 * i, dtype, device, columns)))
        start += size + i % 2
    check(segments, start + 1, device, dtype, num_splits)


def test_a_rank_of_several_blocks_beside_a_small_one(device):
    segments = [
        LoraSegment(0, 2, adapter(130, torch.float32, device)),
        LoraSegment(2, 3, adapter(2, torch.float32, device)),
    ]
    check(segments, 4, device, num_splits=2)


def test_an_adapter_that_changes_nothing_here(device):
    segments = [
        LoraSegment(0, 2, adapter(3, torch.float32, device, layer=0)),
        LoraSegment(2, 4, adapter(3, torch.float32, device)),
    ]
    check(segments, 5, device)


def test_splits_are_a_power_of_two():
    assert count_splits(num_inputs=4096, programs=8, processors=132) == 8, "at most 8"
    assert count_splits(num_inputs=4096, programs=100, processors=132) == 4, "2 programs a processor, rounded up"
    assert count_splits(num_inputs=576, programs=1, processors=132) == 4, "each of about 256 inputs"
    assert count_splits(num_inputs=576, programs=1000, processors=132) == 1
