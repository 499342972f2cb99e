"""The code of docs/client.md and docs/sessions.md runs as it stands, against the real system."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
BEFORE = {"client.md": "", "sessions.md": 'from icarus.client import Client\nclient = Client("127.0.0.1:7080")\n'}
"""What a guide takes for granted."""
BLOCKS = [
    pytest.param(before + block, id=f"{name}-{i}")
    for name, before in BEFORE.items()
    for i, block in enumerate(re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(), re.DOTALL))
]
assert len(BLOCKS) > 5, "no code in the guides"


@pytest.mark.parametrize("block", BLOCKS)
def test_guide(system, client, block):
    for written, here in (("127.0.0.1:7080", system.address), ("triage", "s0"), ("writer", "s1")):
        block = block.replace(written, here)
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
