"""The code of docs/client.md runs as it stands, against the real system."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "client.md"
BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
assert BLOCKS, f"no code in {GUIDE}"


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_client_guide(system, client, block):
    for written, here in (("127.0.0.1:7080", system.address), ("triage", "s0"), ("writer", "s1")):
        block = block.replace(written, here)
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
