"""store_kv writes its slots and nothing else."""

import pytest
import torch
from icarus_kernels import store_kv, store_kv_reference


@pytest.mark.parametrize(("rows", "block_size"), [(0, 4), (1, 16), (7, 5), (33, 4)])
def test_matches_the_reference_to_the_bit(rows, block_size):
    torch.manual_seed(rows)
    pool = torch.full((11, 3, 2, block_size, 3, 10), torch.nan)
    expected = pool.clone()
    slots = torch.randperm(11 * block_size)[:rows]
    slots[::5] = -1
    keys, values = torch.randn(rows, 3, 10), torch.randn(rows, 3, 10)
    store_kv(pool[:, 1], slots, keys, values)
    store_kv_reference(expected[:, 1], slots, keys, values)
    assert torch.equal(pool.nan_to_num(1e9), expected.nan_to_num(1e9))
    assert pool.isfinite().sum() == (slots >= 0).sum() * 2 * 3 * 10


def test_refuses_what_it_would_misread():
    pages, slots, keys = torch.zeros(2, 2, 4, 3, 8), torch.arange(2), torch.ones(2, 3, 8)
    for wrong in (
        (pages, slots.int(), keys, keys),
        (pages, torch.arange(4)[::2], keys, keys),
        (pages, slots, keys, keys.bfloat16()),
        (pages.bfloat16(), slots, keys, keys),
        (pages, slots, keys, torch.ones(2, 3, 16)[..., ::2]),
        (torch.zeros(2, 2, 4, 3, 16)[..., ::2], slots, keys, keys),
    ):
        with pytest.raises(AssertionError):
            store_kv(*wrong)
    assert not pages.any()
