"""Norm, rotation and gate against their references."""

import pytest
import torch
from icarus_kernels.rms_norm import rms_norm_reference
from icarus_kernels.rms_norm_triton import add_rms_norm_triton, rms_norm_triton
from icarus_kernels.rotate import rotate_reference
from icarus_kernels.rotate_triton import rotate_triton
from icarus_kernels.silu_mul import silu_mul_reference
from icarus_kernels.silu_mul_triton import silu_mul_triton

TOLERANCE = {torch.float32: {"atol": 1e-6, "rtol": 1e-5}, torch.bfloat16: {"atol": 2e-2, "rtol": 1e-2}}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def some_heads(rows, heads, dim, dtype, device):
    """Some of the heads of wider rows, and the whole of these: 7 beside them."""
    whole = torch.full((rows, heads + 2, dim), 7.0, dtype=dtype)
    whole[:, 1:-1] = torch.randn(rows, heads, dim).to(dtype)
    whole = whole.to(device)
    return whole[:, 1:-1], whole


@DTYPES
@pytest.mark.parametrize("shape", [(0, 3, 10), (5, 3, 10), (2, 8, 128)])
def test_rms_norm_of_heads(device, dtype, shape):
    heads, _ = some_heads(*shape, dtype, device)
    weight = torch.randn(shape[-1]).to(device, dtype)
    torch.testing.assert_close(
        rms_norm_triton(heads, weight, 1e-5), rms_norm_reference(heads, weight, 1e-5), **TOLERANCE[dtype]
    )


@DTYPES
@pytest.mark.parametrize("size", [1, 576, 1000])
def test_rms_norm_of_a_sum(device, dtype, size):
    residual, x = torch.randn(2, 3, size).to(device, dtype)
    weight, total = torch.randn(size).to(device, dtype), residual + x
    got = add_rms_norm_triton(residual, x, weight, 1e-5)
    # To the last bit of bfloat16: the interpreter cuts bits off where a GPU rounds.
    torch.testing.assert_close(residual, total, atol=0, rtol=2**-7 if dtype == torch.bfloat16 else 0)
    torch.testing.assert_close(got, rms_norm_reference(residual, weight, 1e-5), **TOLERANCE[dtype])
    assert torch.equal(rms_norm_triton(residual, weight, 1e-5), got)


@DTYPES
@pytest.mark.parametrize("shape", [(0, 3, 10), (5, 3, 10), (2, 9, 64)])
def test_rotate(device, dtype, shape):
    heads, whole = some_heads(*shape, dtype, device)
    angles = torch.randn(shape[0], shape[2] // 2, device=device)
    expected = heads.clone()
    rotate_reference(expected, angles.cos(), angles.sin())
    rotate_triton(heads, angles.cos(), angles.sin())
    torch.testing.assert_close(heads, expected, **TOLERANCE[dtype])
    assert whole[:, 0].eq(7).all() and whole[:, -1].eq(7).all(), "heads beside them stay"


@DTYPES
@pytest.mark.parametrize(("rows", "size"), [(0, 3), (3, 7), (2, 1536)])
def test_silu_mul(device, dtype, rows, size):
    gate_up = torch.randn(rows, 2 * size).to(device, dtype)
    torch.testing.assert_close(silu_mul_triton(gate_up), silu_mul_reference(gate_up), **TOLERANCE[dtype])
