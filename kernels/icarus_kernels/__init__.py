"""The operations that Icarus adds to torch: one op a file, a plain reference beside each. Knows torch, Triton and Numba
alone."""

from icarus_kernels.attention_rows import AttentionRows, SequenceRows
from icarus_kernels.cpu_kernel import compile_cpu_kernels
from icarus_kernels.gumbel_noise import add_gumbel_noise, add_gumbel_noise_reference
from icarus_kernels.kv_store import store_kv, store_kv_reference
from icarus_kernels.lora_rows import Columns, LoraRows, LoraSegment, LoraTable
from icarus_kernels.packed_linear import pack_linear
from icarus_kernels.paged_attention import paged_attention, paged_attention_reference
from icarus_kernels.rms_norm import add_rms_norm, rms_norm, rms_norm_reference
from icarus_kernels.rotate import rotate, rotate_reference
from icarus_kernels.segmented_lora import add_segmented_lora, add_segmented_lora_reference
from icarus_kernels.silu_mul import silu_mul, silu_mul_reference

__all__ = [
    "AttentionRows",
    "Columns",
    "LoraRows",
    "LoraSegment",
    "LoraTable",
    "SequenceRows",
    "add_gumbel_noise",
    "add_gumbel_noise_reference",
    "add_rms_norm",
    "add_segmented_lora",
    "add_segmented_lora_reference",
    "compile_cpu_kernels",
    "pack_linear",
    "paged_attention",
    "paged_attention_reference",
    "rms_norm",
    "rms_norm_reference",
    "rotate",
    "rotate_reference",
    "silu_mul",
    "silu_mul_reference",
    "store_kv",
    "store_kv_reference",
]
