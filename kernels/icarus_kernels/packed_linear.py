"""A linear layer whose weight is laid out once, for the device that it is on."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

from icarus_kernels.packed_linear_cpu import FEW, few_rows_linear_cpu, panels_of

_PACKED = (torch.bfloat16, torch.float32)


def pack_linear(weight: Tensor, bias: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """x [rows, in] -> x @ weight.T + bias [rows, out]; weight [out, in], bias [out].

    On a CPU it copies the weight into the layout of oneDNN's matmul, where oneDNN computes in the weight's dtype: with
    few rows, reading the weight is all the work, and packed it is read up to twice as fast. A kernel of ours that reads
    the same copy is faster still, where the processor has what it takes.
    """
    if weight.device.type != "cpu" or not _packs(weight.dtype):
        return lambda x: linear(x, weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    panels, dtype, (out, size) = panels_of(packed, weight), weight.dtype, weight.shape
    bias = None if bias is None else bias.to(dtype).contiguous()
    run = torch.ops.mkldnn._linear_pointwise.default._op

    def is_read_by_pairs(x: Tensor) -> bool:
        return x.dtype == dtype and x.shape[1] == size and x.stride(1) == 1 and x.stride(0) % 2 == 0

    def multiply(x: Tensor) -> Tensor:
        if panels is not None and len(x) <= FEW and is_read_by_pairs(x):
            return few_rows_linear_cpu(x, panels, bias, out)
        return run(x, packed, bias, "none", [], "")

    return multiply


def _packs(dtype: torch.dtype) -> bool:
    if dtype not in _PACKED or not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
