"""Compiles every kernel for GPUs that need not be here, and writes down what each takes: registers, spills, memory.

    python -m icarus_kernels.compile_table                 # writes resources.md beside this file
    python -m icarus_kernels.compile_table --check TEXT    # whether that file is of these kernels; compiles the cases
                                                           # with a TEXT in their names and compares their lines

The launchers run on small CPU tensors of the right shapes; a hook of Triton's takes what they would compile and keeps
them from launching it.
"""

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from icarus_kernels import Columns, LoraRows, LoraSegment, LoraTable, gumbel_noise_triton, segmented_lora_triton
from icarus_kernels.attention_rows import AttentionRows, SequenceRows
from icarus_kernels.kv_store_triton import store_kv_triton
from icarus_kernels.paged_attention_triton import paged_attention_triton
from icarus_kernels.rms_norm_triton import add_rms_norm_triton, rms_norm_triton
from icarus_kernels.rotate_triton import rotate_triton
from icarus_kernels.silu_mul_triton import silu_mul_triton

TABLE = Path(__file__).with_name("resources.md")
ARCHITECTURES = (80, 90)
DTYPES = (torch.bfloat16, torch.float32)
HEADS = ((9, 3, 64, 16), (32, 8, 128, 16), (32, 8, 128, 32), (8, 4, 256, 16))
"""Query heads, KV heads, head_dim, block size."""


_HEAD = """# What the kernels take

Written by `make kernel-table`, with Triton {version}. Registers and spilled bytes are of a thread, shared memory of a
block in bytes. float16 takes what bfloat16 takes. Kernels: {digest}

| kernel | case | {columns} |
| --- | --- | {rules} |
"""


@dataclass(frozen=True)
class Variant:
    """One kernel as Triton would compile it for one launch."""

    case: str
    source: ASTSource
    options: dict[str, int]

    @property
    def identity(self) -> str:
        """All that decides what is compiled, but the helpers that the kernel calls."""
        source = self.source
        return repr((self.case, source.fn.src, source.signature, source.constants, source.attrs, self.options))

    @property
    def line(self) -> str:
        """Of the table; compiles the variant."""
        resources = (Resources.of(self, architecture) for architecture in ARCHITECTURES)
        cells = (f"{r.registers} | {r.spilled} | {r.shared:,}" for r in resources)
        return f"| {self.source.name.removesuffix('_kernel')} | {self.case} | {' | '.join(cells)} |\n"


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes."""

    registers: int
    """Of a thread."""
    spilled: int
    """Bytes of local memory of a thread."""
    shared: int
    """Bytes of shared memory of a block."""

    @classmethod
    def of(cls, variant: Variant, architecture: int) -> "Resources":
        compiled = triton.compile(variant.source, GPUTarget("cuda", architecture, 32), variant.options)
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
            usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        fields = dict(re.findall(r"(\w+):(\d+)", usage))
        return cls(int(fields["REG"]), int(fields["STACK"]), compiled.metadata.shared)


class _NoDevice:
    """What Triton asks its driver before it compiles; nothing is launched."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", ARCHITECTURES[0], 32)


def record_variants() -> list[Variant]:
    """Of every launch in `_launches`."""
    triton.runtime.driver.set_active(cast(Any, _NoDevice()))
    return [variant for case, launch in _launches() for variant in _record(case, launch)]


def _record(case: str, launch: Callable[[], object]) -> list[Variant]:
    variants: list[Variant] = []

    def hook(*, fn: Any, compile: Any, **_: Any) -> bool:
        source = ASTSource(fn.jit_function, compile["signature"], compile["constants"], compile["configs"][0])
        variants.append(Variant(case, source, {name: compile[name] for name in ("num_warps", "num_stages")}))
        return True  # neither compile nor launch

    knobs.runtime.jit_cache_hook = cast(Any, hook)
    launch()
    return variants


def _launches() -> Iterator[tuple[str, Callable[[], object]]]:
    """By name. The heads are those of SmolLM2, Llama 3.1 8B and Gemma 2."""
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        for heads, kv_heads, head_dim, block_size in HEADS:
            shape = f"{name}, {heads}/{kv_heads} heads of {head_dim}, blocks of {block_size}"
            query, keys = (torch.empty(2, n, head_dim, dtype=dtype) for n in (heads, kv_heads))
            pages = torch.empty(4, 2, 2, block_size, kv_heads, head_dim, dtype=dtype)[:, 0]
            decode = AttentionRows.build([SequenceRows([0, 1], [3, 3], [0])], block_size)
            prefill = AttentionRows.build([SequenceRows([0, 1], [3, 4], [0])], block_size)
            yield f"decode, {shape}", partial(paged_attention_triton, query, pages, decode, None, 1)
            yield f"split decode, {shape}", partial(paged_attention_triton, query, pages, decode, None, 4)
            yield f"prefill, {shape}", partial(paged_attention_triton, query, pages, prefill)
            yield shape, partial(store_kv_triton, pages, torch.zeros(2, dtype=torch.int64), keys, keys)
            angles = torch.empty(2, head_dim // 2)
            yield shape, partial(rotate_triton, query, angles, angles)
        rows, weight = torch.empty(2, 4096, dtype=dtype), torch.empty(4096, dtype=dtype)
        yield f"{name}, rows of 4096", partial(rms_norm_triton, rows, weight, 1e-5)
        yield f"{name}, rows of 4096, with the sum", partial(add_rms_norm_triton, rows, rows, weight, 1e-5)
        yield f"{name}, rows of 4096", partial(silu_mul_triton, rows)
        for rank, num_rows, num_splits in ((16, 16, 8), (16, 256, 1), (64, 16, 8), (64, 256, 1)):
            case = f"{name}, rank {rank}, {num_rows} rows, splits: {num_splits}"
            yield case, partial(_add_lora, dtype, rank, num_rows, num_splits)
    logits, keys = torch.empty(2, 4096), torch.zeros(2, 2, dtype=torch.uint64)
    yield "float32, rows of 4096", partial(gumbel_noise_triton.add_gumbel_noise_triton, logits, keys)


def _add_lora(dtype: torch.dtype, rank: int, num_rows: int, num_splits: int) -> None:
    """Gate and up of one adapter."""
    pair = torch.empty(rank, 4096, dtype=dtype), torch.empty(rank, 4096, dtype=dtype).t()
    segments = [LoraSegment(0, num_rows, LoraTable.build({(0, 0): pair, (0, 1): pair}, 1, 2))]
    rows, columns = LoraRows.build(segments), (Columns(0, 0, 4096), Columns(1, 4096, 8192))
    x, output = torch.empty(num_rows, 4096, dtype=dtype), torch.empty(num_rows, 8192, dtype=dtype)
    assert rows is not None
    segmented_lora_triton.add_segmented_lora_triton(output, x, rows, 0, columns, num_splits)


def table_head(variants: Sequence[Variant]) -> str:
    """What the table says of all kernels: another head, other kernels."""
    helpers = (segmented_lora_triton._pick.src, gumbel_noise_triton._add_noise.src)
    digest = hashlib.sha256("\n".join((*helpers, *(v.identity for v in variants))).encode()).hexdigest()
    columns = (f"sm_{a} registers | spilled | shared" for a in ARCHITECTURES)
    return _HEAD.format(
        version=triton.__version__,
        digest=digest[:16],
        columns=" | ".join(columns),
        rules=" | ".join(["---:"] * 3 * len(ARCHITECTURES)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m icarus_kernels.compile_table")
    parser.add_argument("--check", metavar="TEXT", nargs="*", help="compare with the table instead of writing it")
    arguments = parser.parse_args()
    variants = record_variants()
    if arguments.check is None:
        TABLE.write_text(table_head(variants) + "".join(dict.fromkeys(v.line for v in variants)))
        return
    table = TABLE.read_text()
    chosen = [v for v in variants if any(text in v.case for text in arguments.check)]
    if not table.startswith(table_head(variants)) or any(v.line not in table for v in chosen):
        sys.exit(f"{TABLE.name} is not of these kernels: run 'make kernel-table'")


if __name__ == "__main__":
    main()
