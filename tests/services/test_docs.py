"""The code of docs/client.md and docs/sessions.md runs as it stands, against the real system."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from icarus.client import Session, TurnStream

DOCS = Path(__file__).parents[2] / "docs"
BEFORE = {"client.md": "", "sessions.md": 'from icarus.client import Client\nclient = Client("127.0.0.1:7080")\n'}
"""What a guide takes for granted."""


def blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(), re.DOTALL)


BLOCKS = [
    pytest.param(before + block, id=f"{name}-{i}")
    for name, before in BEFORE.items()
    for i, block in enumerate(blocks(name))
]
assert len(BLOCKS) > 5, "no code in the guides"


@pytest.mark.parametrize("block", BLOCKS)
def test_guide(system, client, block):
    for written, here in (("127.0.0.1:7080", system.address), ("triage", "s0"), ("writer", "s1")):
        block = block.replace(written, here)
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_the_guide_to_tools_answers_a_call(client, monkeypatch):
    """Which the tiny model does not write by itself."""
    calls = ['<tool_call>\n{"name": "track", "arguments": {"number": "7"}}\n</tool_call>']
    asked = []
    generate, result = Session.generate, TurnStream.result

    def scripted_result(turn):
        return replace(result(turn), text=calls.pop() if calls else "on its way")

    def spy(session, *args, **named):
        asked.append(named.get("messages"))
        return generate(session, *args, **named)

    monkeypatch.setattr(TurnStream, "result", scripted_result)
    monkeypatch.setattr(Session, "generate", spy)
    (block,) = [block for block in blocks("sessions.md") if "<tool_call>" in block]
    exec(block.replace("triage", "s0"), {"client": client})
    content = '{"called": "track", "result": "left the depot on Monday"}'
    assert asked == [None, [{"role": "tool", "content": content}]]
