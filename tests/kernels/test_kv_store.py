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
    keys, values = torch.randn(rows, 3, 10), torch.randn(rows, 3, 10)
    store_kv(pool[:, 1], slots, keys, values)
    store_kv_reference(expected[:, 1], slots, keys, values)
    assert torch.equal(pool.nan_to_num(1e9), expected.nan_to_num(1e9))
    assert pool.isfinite().sum() == rows * 2 * 3 * 10
