"""The operations that Icarus adds to torch: one op a file, a plain reference beside each. Knows torch alone."""

from icarus_kernels.attention_rows import AttentionRows, SequenceRows
from icarus_kernels.kv_store import store_kv, store_kv_reference
from icarus_kernels.paged_attention import paged_attention, paged_attention_reference
from icarus_kernels.segmented_lora import (
    Columns,
    LoraRows,
    LoraSegment,
    LoraTable,
    add_segmented_lora,
    add_segmented_lora_reference,
)

__all__ = [
    "AttentionRows",
    "Columns",
    "LoraRows",
    "LoraSegment",
    "LoraTable",
    "SequenceRows",
    "add_segmented_lora",
    "add_segmented_lora_reference",
    "paged_attention",
    "paged_attention_reference",
    "store_kv",
    "store_kv_reference",
]
