"""Paged attention on the CPU: which kernel computes which sequences."""

import torch
from torch import Tensor

from icarus_kernels.attention_rows import AttentionRows
from icarus_kernels.cpu_dot_tiles import COLUMNS, has_dot_tiles
from icarus_kernels.cpu_lanes import WIDTH
from icarus_kernels.paged_attention_torch import paged_attention_torch
from icarus_kernels.paged_decode_cpu import paged_decode_cpu
from icarus_kernels.paged_decode_dot_cpu import paged_decode_dot_cpu
from icarus_kernels.paged_prefill_cpu import paged_prefill_cpu


def paged_attention_cpu(query: Tensor, pages: Tensor, rows: AttentionRows, window: int | None) -> Tensor:
    """As `paged_attention`."""
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    head_dim = query.shape[2]
    dots = head_dim % COLUMNS == 0 and query.dtype == torch.bfloat16 and has_dot_tiles()
    num_decodes = rows.num_decodes if head_dim % WIDTH == 0 else 0
    if num_decodes:
        attend_decodes = paged_decode_dot_cpu if dots else paged_decode_cpu
        attend_decodes(query, pages, rows, window, output)
    if num_decodes < rows.num_sequences:
        attend_chunks = paged_prefill_cpu if dots else paged_attention_torch
        attend_chunks(query, pages, rows, window, output, num_decodes)
    return output
