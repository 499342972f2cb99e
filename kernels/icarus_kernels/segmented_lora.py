"""LoRA deltas of several adapters over one batch."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import linear

from icarus_kernels.lora_rows import Columns, LoraRows
from icarus_kernels.segmented_lora_cpu import add_few_rows


def add_segmented_lora(output: Tensor, x: Tensor, rows: LoraRows, layer: int, columns: Sequence[Columns]) -> None:
    """output[s:e, columns] += x[s:e] @ A.T @ B.T for each segment and module, in place; the rest stays, to the bit.

    output [rows, out], x [rows, in], of the dtype and device of A and B, each row contiguous.
    """
    assert output.dtype is x.dtype, f"output is {output.dtype}, x {x.dtype}"
    assert output.stride(1) == x.stride(1) == 1, f"strides of output are {output.stride()}, of x {x.stride()}"
    if x.is_cuda:
        from icarus_kernels.segmented_lora_triton import add_segmented_lora_triton

        add_segmented_lora_triton(output, x, rows, layer, columns)
        return
    if rows.few is not None:
        add_few_rows(output, x, rows.few, layer, columns)
    for start, end, table in rows.many:
        for module, first, last in columns:
            if (layer, module) in table.pairs:
                a, b = table.pairs[layer, module]
                output[start:end, first:last] += linear(linear(x[start:end], a), b)


def add_segmented_lora_reference(
    output: Tensor, x: Tensor, rows: LoraRows, layer: int, columns: Sequence[Columns]
) -> None:
    """The same, one row at a time, in float64."""
    for segment in rows.segments:
        for module, start, end in columns:
            if (layer, module) not in segment.table.pairs:
                continue
            a, b = segment.table.pairs[layer, module]
            for row in range(segment.start, segment.end):
                output[row, start:end] += (b.double() @ (a.double() @ x[row].double())).to(output.dtype)
