"""add_segmented_lora over batches of different adapter popularity (distinct, uniform, skewed, identical)."""

import pytest
import torch
from icarus_kernels import (
    Columns,
    LoraRows,
    LoraSegment,
    LoraTable,
    add_segmented_lora,
    add_segmented_lora_reference,
)

IN, OUTS = 19, (23, 8, 31)
COLUMNS = (Columns(0, 0, 23), Columns(3, 23, 31), Columns(1, 31, 62))
"""Three modules share a linear; an adapter of rank r leaves out those that are not in `modules_of(r)`."""
LAYER = 1


def modules_of(rank):
    return [c for i, c in enumerate(COLUMNS) if (rank + i) % 4]


def adapter(rank, dtype=torch.float32, modules=None):
    pairs = {
        (LAYER, c.module): ((torch.randn(rank, IN) / IN**0.5).to(dtype), torch.randn(c.end - c.start, rank).to(dtype))
        for c in (modules_of(rank) if modules is None else modules)
    }
    return LoraTable.build(pairs, num_layers=3, num_modules=4)


def check(segments, num_rows, dtype, **tolerance):
    x = torch.randn(num_rows, IN).to(dtype)
    inside = torch.zeros(num_rows, dtype=torch.bool)
    for segment in segments:
        inside[segment.start : segment.end] = True
    x[~inside] = torch.nan  # rows of the base are not read
    before = torch.randn(num_rows, sum(OUTS)).to(dtype)
    got, expected = before.clone(), before.clone()
    rows = LoraRows.build(segments)
    assert rows is not None
    add_segmented_lora(got, x, rows, LAYER, COLUMNS)
    add_segmented_lora_reference(expected, x, rows, LAYER, COLUMNS)
    torch.testing.assert_close(got, expected, **tolerance)
    assert torch.equal(got[~inside], before[~inside])
    assert inside.sum() == 0 or not torch.equal(got, before)
    add_segmented_lora(got.copy_(before), x, rows, LAYER + 1, COLUMNS)
    assert torch.equal(got, before), "a layer that no adapter changes"


@pytest.mark.parametrize(
    "sizes", [[1] * 7, [3, 3, 3], [17, 1, 2], [13], [70, 2]], ids=["distinct", "uniform", "skewed", "identical", "many"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_matches_the_reference(sizes, dtype):
    torch.manual_seed(len(sizes))
    start, segments = 2, []
    for i, size in enumerate(sizes):
        segments.append(LoraSegment(start, start + size, adapter(1 + 5 * i, dtype)))
        start += size + i % 2
    tolerance = {"atol": 2e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 1e-1, "rtol": 2e-2}
    check(segments, start + 1, dtype, **tolerance)


def test_an_adapter_that_changes_nothing_here():
    torch.manual_seed(0)
    check([LoraSegment(0, 2, adapter(3, modules=[])), LoraSegment(2, 4, adapter(3))], 5, torch.float32)


def test_each_segment_goes_the_way_of_its_own_size():
    sizes, start, segments = (32, 33, 1, 400, 7), 0, []
    for size in sizes:
        segments.append(LoraSegment(start, start + size, adapter(4)))
        start += size
    rows = LoraRows.build(segments)
    assert rows is not None and rows.few is not None
    assert list(rows.few.segments) == [segments[0], segments[2], segments[4]]
    assert list(rows.many) == [segments[1], segments[3]]
    check(segments, start, torch.float32, atol=2e-5, rtol=1e-5)
    only_many, only_few = LoraRows.build(segments[1:2]), LoraRows.build(segments[:1])
    assert only_many is not None and only_many.few is None and len(only_many.many) == 1
    assert only_few is not None and only_few.few is only_few and only_few.many == ()


def test_refuses_what_it_would_misread():
    rows = LoraRows.build([LoraSegment(0, 2, adapter(4))])
    output, x = torch.randn(2, sum(OUTS)), torch.randn(2, IN)
    for wrong in (
        (output.bfloat16(), x),
        (output, torch.randn(IN, 2).t()),
        (torch.randn(sum(OUTS), 2).t(), x),
    ):
        with pytest.raises(AssertionError):
            add_segmented_lora(*wrong, rows, LAYER, COLUMNS)


def test_no_segments():
    assert LoraRows.build([]) is None
