"""store_kv's kernel writes its slots and nothing else."""

import pytest
import torch
from icarus_kernels import store_kv_reference
from icarus_kernels.kv_store_triton import store_kv_triton


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "block_size", "heads", "head_dim"), [(0, 16, 3, 64), (1, 16, 3, 64), (7, 32, 8, 80), (33, 5, 5, 10)]
)
def test_matches_the_reference_to_the_bit(device, dtype, rows, block_size, heads, head_dim):
    torch.manual_seed(rows)
    pool = torch.full((11, 3, 2, block_size, heads, head_dim), torch.nan, dtype=dtype)
    expected = pool.clone()
    slots = torch.randperm(11 * block_size)[:rows]
    # As a fused projection gives them: columns of wider rows.
    projected = torch.randn(rows, 4 * heads, head_dim).to(dtype)
    store_kv_reference(expected[:, 1], slots, *projected.split((2 * heads, heads, heads), 1)[1:])
    pool, projected = pool.to(device), projected.to(device)
    store_kv_triton(pool[:, 1], slots.to(device), *projected.split((2 * heads, heads, heads), 1)[1:])
    assert torch.equal(pool.cpu().nan_to_num(1e9), expected.nan_to_num(1e9))


def test_a_negative_slot_is_no_slot(device):
    pool = torch.full((2, 2, 16, 1, 16), torch.nan, device=device)
    keys = torch.ones(3, 1, 16, device=device)
    store_kv_triton(pool, torch.tensor([-1, 20, -1], device=device), keys, keys)
    assert pool.isfinite().nonzero()[:, [0, 2]].unique(dim=0).tolist() == [[1, 4]]
