"""A linear layer whose weight is laid out once, for the device that it is on."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

_PACKED = (torch.bfloat16, torch.float32)


def pack_linear(weight: Tensor, bias: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """x [rows, in] -> x @ weight.T + bias [rows, out]; weight [out, in], bias [out].

    On a CPU it copies the weight into the layout of oneDNN's matmul, where oneDNN computes in the weight's dtype: with
    few rows, reading the weight is all the work, and packed it is read up to twice as fast.
    """
    if weight.device.type == "cpu" and _packs(weight.dtype):
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        run = torch.ops.mkldnn._linear_pointwise.default._op
        return lambda x: run(x, packed, bias, "none", [], "")
    return lambda x: linear(x, weight, bias)


def _packs(dtype: torch.dtype) -> bool:
    if dtype not in _PACKED or not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
