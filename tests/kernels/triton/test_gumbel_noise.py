"""The noise kernel against its reference: the same random integers, to whichever digit their logarithms agree."""

import pytest
import torch
from icarus_kernels import add_gumbel_noise_reference
from icarus_kernels.gumbel_noise_triton import add_gumbel_noise_triton


@pytest.mark.parametrize("size", [1, 64, 777, 1500])
def test_matches_the_reference(device, size):
    keys = torch.tensor([(0, 0), (2**64 - 1, 5), (12345678901234567890, 2**31 + 7)], dtype=torch.uint64)
    logits = torch.randn(3, size)
    got, expected = logits.to(device, copy=True), logits.clone()
    add_gumbel_noise_triton(got, keys.to(device))
    add_gumbel_noise_reference(expected, keys)
    torch.testing.assert_close(got.cpu(), expected, atol=1e-4, rtol=1e-4)


def test_no_rows(device):
    add_gumbel_noise_triton(torch.empty(0, 5, device=device), torch.empty(0, 2, dtype=torch.uint64, device=device))
