"""Benchmarks run as a user runs them, on a tiny model."""

import json
from pathlib import Path

import pytest
import tiny

from icarus.cli.main import main


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    return tiny.tiny_llama(tmp_path_factory.mktemp("benchmarked") / "tiny", context=1024)


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    """Runs `icarus bench NAME FLAGS` and returns what --json wrote; the plot is there too."""

    def run(name: str, *flags: str) -> dict:
        folder = tmp_path_factory.mktemp(name)
        files = [f"--json={folder / 'figures.json'}", f"--plot={folder / 'curves.png'}"]
        assert main(["bench", name, *files, *flags]) == 0
        assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
        figures = json.loads((folder / "figures.json").read_text())
        assert figures["benchmark"] == name and figures["machine"]["cores"] >= 1 and figures["settings"]
        return figures

    return run


@pytest.fixture(scope="session")
def on_tiny(tiny_base) -> list[str]:
    return [f"--model-path={tiny_base}", "--model-dtype=float32", "--engine-num-threads=1"]
