"""The gate of a gated MLP."""

from torch import Tensor

from icarus_kernels.silu_mul_cpu import silu_mul_cpu


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up: [rows, 2 * size], gate first, contiguous -> [rows, size]."""
    assert gate_up.is_contiguous(), f"strides of gate_up are {gate_up.stride()}"
    if gate_up.is_cuda:
        from icarus_kernels.silu_mul_triton import silu_mul_triton

        return silu_mul_triton(gate_up)
    return silu_mul_cpu(gate_up)


def silu_mul_reference(gate_up: Tensor) -> Tensor:
    """The same, in float64."""
    gate, up = gate_up.double().chunk(2, dim=-1)
    return (gate / (1 + (-gate).exp()) * up).to(gate_up.dtype)
