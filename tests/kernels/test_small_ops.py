"""The ops between the matrix products against their references: odd sizes, views, few rows and many."""

import pytest
import torch
from icarus_kernels import (
    add_rms_norm,
    pack_linear,
    rms_norm,
    rms_norm_reference,
    rotate,
    rotate_reference,
    silu_mul,
    silu_mul_reference,
)
from icarus_kernels.cpu_dot_tiles import has_dot_tiles
from icarus_kernels.packed_linear_cpu import panels_of

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {
    torch.float32: {"atol": 2e-6, "rtol": 2e-6},
    torch.bfloat16: {"atol": 1e-2, "rtol": 1e-2},
    torch.float16: {"atol": 2e-3, "rtol": 2e-3},
}


@pytest.fixture(params=[1, 2], autouse=True)
def num_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "size"), [(0, 16), (1, 5), (3, 40), (40, 576)])
def test_rms_norm(rows, size, dtype):
    torch.manual_seed(rows)
    x, added, weight = torch.randn(rows, size).to(dtype), torch.randn(rows, size).to(dtype), torch.randn(size).to(dtype)
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), rms_norm_reference(x, weight, 1e-5), **TOLERANCE[dtype])
    residual = x.clone()
    got = add_rms_norm(residual, added, weight, 1e-5)
    assert torch.equal(residual, x + added)
    torch.testing.assert_close(got, rms_norm_reference(x + added, weight, 1e-5), **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_of_heads_within_a_projection(dtype):
    torch.manual_seed(0)
    heads, weight = torch.randn(5, 7, 24).to(dtype)[:, 2:5], torch.randn(24).to(dtype)
    got = rms_norm(heads, weight, 1e-6)
    assert got.is_contiguous()
    torch.testing.assert_close(got, rms_norm_reference(heads, weight, 1e-6), **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "dim"), [(0, 4), (3, 10), (90, 64)])
def test_rotate_in_place_and_nothing_else(rows, dim, dtype):
    torch.manual_seed(rows)
    angles = torch.randn(rows, dim // 2)
    projected = torch.randn(rows, 7, dim).to(dtype)
    expected = projected.clone()
    rotate(projected[:, 1:4], angles.cos(), angles.sin())
    rotate_reference(expected[:, 1:4], angles.cos(), angles.sin())
    torch.testing.assert_close(projected, expected, **TOLERANCE[dtype])
    assert torch.equal(projected[:, 4:], expected[:, 4:]) and torch.equal(projected[:, :1], expected[:, :1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "size"), [(0, 16), (1, 3), (5, 40), (30, 600)])
def test_silu_mul(rows, size, dtype):
    torch.manual_seed(rows)
    gate_up = (4 * torch.randn(rows, 2 * size)).to(dtype)
    torch.testing.assert_close(silu_mul(gate_up), silu_mul_reference(gate_up), **TOLERANCE[dtype])


def test_silu_of_the_far_ends():
    gate = torch.tensor([-1e4, -200.0, -90.0, 0.0, 90.0, 200.0, 1e4] * 5)[None]
    got = silu_mul(torch.cat((gate, torch.ones_like(gate)), 1))
    torch.testing.assert_close(got, torch.nn.functional.silu(gate), atol=1e-30, rtol=1e-6)


def test_small_ops_refuse_what_they_would_misread():
    x, weight, wide = torch.randn(4, 16), torch.randn(16), torch.randn(4, 32)
    heads, angles = torch.randn(4, 3, 16), torch.randn(4, 8)
    for call in (
        lambda: rms_norm(x, weight.bfloat16(), 1e-5),
        lambda: rms_norm(wide[:, ::2], weight, 1e-5),
        lambda: rms_norm(x, wide[0, ::2], 1e-5),
        lambda: add_rms_norm(x, x.bfloat16(), weight, 1e-5),
        lambda: add_rms_norm(x, wide[:, :16], weight, 1e-5),
        lambda: add_rms_norm(wide[:, :16], x, weight, 1e-5),
        lambda: rotate(heads, angles.double(), angles),
        lambda: rotate(heads, angles, torch.randn(8, 4).t()),
        lambda: rotate(torch.randn(4, 3, 32)[..., ::2], angles, angles),
        lambda: silu_mul(wide[:, :16]),
    ):
        with pytest.raises(AssertionError):
            call()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [(23, 40), (192, 51), (192, 96)])
@pytest.mark.parametrize("rows", [0, 1, 3, 8, 17, 64, 65])
def test_packed_linear(rows, size, bias, dtype):
    torch.manual_seed(rows)
    x, weight = torch.randn(rows, size[1]).to(dtype), (torch.randn(size) / size[1] ** 0.5).to(dtype)
    added = torch.randn(size[0]).to(dtype) if bias else None
    expected = x.double() @ weight.double().T + (0 if added is None else added.double())
    got = pack_linear(weight, added)(x)
    torch.testing.assert_close(got, expected.to(dtype), **TOLERANCE[dtype])


@pytest.mark.parametrize("view", [lambda t: t[1:6, 32:64], lambda t: t[1:6, 1:33], lambda t: t[:, :64].t()[:5, :32]])
@pytest.mark.parametrize("columns", [96, 97])
def test_packed_linear_of_a_view(view, columns):
    torch.manual_seed(0)
    x, weight = view(torch.randn(40, columns).bfloat16()), torch.randn(64, 32).bfloat16()
    torch.testing.assert_close(pack_linear(weight)(x), x @ weight.T, **TOLERANCE[torch.bfloat16])


@pytest.mark.skipif(not has_dot_tiles(), reason="no AVX512_BF16, or AMX beside it")
def test_few_rows_read_the_copy_of_onednn():
    weight = torch.randn(128, 64).bfloat16()
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    assert panels_of(packed, weight) is not None
    assert panels_of(packed, weight.flip(0)) is None
    assert panels_of(packed, weight[:, :40].contiguous()) is None


@pytest.mark.parametrize("rows", [3, 70])
def test_packed_linear_refuses_what_does_not_fit(rows):
    linear = pack_linear(torch.randn(128, 64).bfloat16())
    for x in (torch.randn(rows, 64), torch.randn(rows, 32).bfloat16(), torch.randn(rows, 96).bfloat16()):
        with pytest.raises(RuntimeError):
            linear(x)
