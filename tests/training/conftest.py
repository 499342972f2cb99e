"""A tiny model in float32 and a task that it can learn: to repeat a word."""

import json
import random
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny import tiny_llama

from icarus.training.settings import TrainSettings

WORDS = ["red", "green", "blue", "black", "white", "grey"]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("trained") / "tiny", layers=2)


def write_lines(path: Path, lines: list) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def chat_line(text: str, answer: str) -> dict:
    roles = [("user", text), ("user", "Again."), ("assistant", answer)]
    return {"messages": [{"role": role, "content": content} for role, content in roles]}


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    choose = random.Random(0)
    lines = []
    for _ in range(20):
        words = choose.choices(WORDS, k=choose.randint(1, 3))
        lines.append(chat_line(" ".join(words), words[0]))
    return write_lines(tmp_path_factory.mktemp("data") / "train.jsonl", lines)


@pytest.fixture
def settings(base, data):
    """Settings of a short run; keywords change them."""

    def make(**changes) -> TrainSettings:
        short = {"model": str(base), "data": str(data), "dtype": "float32", "rank": 4, "learning_rate": 1e-2}
        return TrainSettings(**short | {"batch_size": 2, "accumulation": 2, "steps": 6, "save_every": 2} | changes)

    return make
