"""add_segmented_lora over batches of different adapter popularity (distinct, uniform, skewed, identical)."""

import pytest
import torch
from icarus_kernels import LoraSegment, add_segmented_lora, add_segmented_lora_reference


@pytest.mark.parametrize(
    "sizes", [[1] * 7, [3, 3, 3], [17, 1, 2], [13], []], ids=["distinct", "uniform", "skewed", "identical", "none"]
)
def test_matches_the_reference(sizes):
    torch.manual_seed(len(sizes))
    start, segments = 2, []
    for i, size in enumerate(sizes):
        rank = 1 + 5 * i
        segments.append(LoraSegment(start, start + size, torch.randn(rank, 19) / 19**0.5, torch.randn(23, rank)))
        start += size + i % 2
    x = torch.randn(start + 1, 19)
    inside = torch.zeros(len(x), dtype=torch.bool)
    for segment in segments:
        inside[segment.start : segment.end] = True
    x[~inside] = torch.nan  # rows of the base are not read
    before = torch.randn(len(x), 23)
    got, expected = before.clone(), before.clone()
    add_segmented_lora(got, x, segments)
    add_segmented_lora_reference(expected, x, segments)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(got[~inside], before[~inside])


@pytest.mark.parametrize("rows", [1, 31, 32, 70])
@pytest.mark.parametrize("adapter_dtype", [torch.bfloat16, torch.float32])
def test_half_precision(rows, adapter_dtype):
    torch.manual_seed(rows)
    segment = LoraSegment(1, rows + 1, torch.randn(4, 64).to(adapter_dtype) / 8, torch.randn(48, 4).to(adapter_dtype))
    x, got = torch.randn(rows + 2, 64).bfloat16(), torch.zeros(rows + 2, 48).bfloat16()
    expected = got.clone()
    add_segmented_lora(got, x, [segment])
    add_segmented_lora_reference(expected, x, [segment])
    torch.testing.assert_close(got, expected, atol=5e-2, rtol=2e-2)
