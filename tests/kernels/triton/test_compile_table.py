"""The kernels compile for GPUs that are not here, and resources.md is what came out."""

import os
import subprocess
import sys
from pathlib import Path

import icarus_kernels
import pytest
import triton

TABLE = Path(icarus_kernels.__file__).with_name("resources.md")
SHARED_MEMORY = {"sm_80": 99 * 1024, "sm_90": 227 * 1024}
"""What a block may have; sm_80's kernels run on sm_86 and sm_89 too, which have less."""

RECORD = """
from functools import partial
import torch
from icarus_kernels import AttentionRows, SequenceRows, compile_table
from icarus_kernels.paged_attention_triton import paged_attention_triton

def attend(num_pages):
    query, pages = torch.empty(3, 9, 64), torch.empty(64, 2, 16, 3, 64)
    rows = SequenceRows([0, 1, 2], [16 * num_pages - i for i in (3, 2, 1)], range(num_pages))
    return partial(paged_attention_triton, query, pages, AttentionRows.build([rows], 16))

def add_lora(rank):
    return partial(compile_table._add_lora, torch.float32, rank, 16, 8)

compile_table.record_variants()
for launches in (map(attend, (1, 3, 16, 17)), map(add_lora, (3, 8, 9, 16))):
    print(len({v.identity for launch in launches for v in compile_table._record("", launch)}))
"""


def test_another_step_compiles_nothing_new(tmp_path):
    """Block tables of another width; adapters of another rank."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", RECORD], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["1", "2"], f"attend; shrink and expand: {done.stdout}{done.stderr}"


def test_the_table_is_of_these_kernels(tmp_path):
    if f"Triton {triton.__version__}." not in TABLE.read_text():
        pytest.skip(f"Triton {triton.__version__} is not the one of the table")
    # Compiling takes a process that does not interpret.
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    cases = ("bfloat16, 32/8 heads of 128, blocks of 16", "bfloat16, rank 16, 16 rows")
    command = [sys.executable, "-m", "icarus_kernels.compile_table", "--check", *cases]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_kernel_fits():
    lines = [line.split(" | ") for line in TABLE.read_text().splitlines() if line.startswith(("| attend", "| shrink"))]
    assert lines
    for line in lines:
        for architecture, cell in (("sm_80", line[4]), ("sm_90", line[7])):
            assert int(cell.strip("| ").replace(",", "")) <= SHARED_MEMORY[architecture], line
