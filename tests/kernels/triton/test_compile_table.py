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
