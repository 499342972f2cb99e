"""The dtype that is served: bfloat16's own paths (packed weights, widened numbers) against the float32 oracle."""

import pytest
import tiny
import torch
from model.setups import make_setup, tokens

from icarus.cache.kv import KVPool
from icarus.model.batch import RowPlan, StepBatch
from icarus.model.loading import load_model
from icarus.types import AdapterMode

BLOCKS = [5, 1, 3]


@pytest.mark.parametrize("name", ["llama, group 3, biases", "qwen3, window 8 in layers 0 and 2, group 3"])
def test_a_chunk_then_paired_rows(name, tmp_path):
    setup = make_setup(name, tmp_path)
    model = load_model(setup.folder, "bfloat16", tiny.DEVICE)
    adapter = tiny.read_adapter(setup.adapter_folders["a"], AdapterMode.SHARED, torch.bfloat16)
    pool = KVPool(model.config, 8, 16, "bfloat16", tiny.DEVICE)
    pool.tensor.fill_(torch.nan)
    ids = tokens(40, seed=1)
    model.forward(StepBatch.build([RowPlan(ids[:35], 0, 35, False, False, BLOCKS)], 16, tiny.DEVICE), pool)
    for length in range(36, 41):
        plan = RowPlan(ids[length - 1 : length], length - 1, 1, True, True, BLOCKS, adapter)
        logits = model.forward(StepBatch.build([plan], 16, tiny.DEVICE), pool)[0].cpu()
        expected = setup.expected("a", ids[:length])
        error = float((logits - expected).norm() / expected.norm())
        assert error < 0.06, error  # transformers' own bfloat16 is at 0.043
