"""The step that a worker tries before it serves, on the CPU: a GPU is short of memory, or not, all the same."""

import pytest
import torch
from tiny import DEVICE, tiny_llama

from icarus.cache.kv import KVPool
from icarus.config import EngineSection
from icarus.errors import ConfigError
from icarus.model.loading import load_model
from icarus.worker.trial_step import try_a_step


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.set_num_threads(1)
    return load_model(tiny_llama(tmp_path_factory.mktemp("trial") / "tiny", context=40), "float32", DEVICE)


@pytest.mark.parametrize(
    ("num_blocks", "max_batch_tokens", "max_running", "rows", "samples"),
    [(64, 17, 4, 17, 4), (64, 512, 4, 40, 4), (3, 512, 4, 12, 4), (64, 8, 32, 8, 8), (1, 2, 1, 2, 1), (64, 4, 4, 4, 4)],
)
def test_the_largest_step_is_tried_and_leaves_nothing_behind(
    model, monkeypatch, num_blocks, max_batch_tokens, max_running, rows, samples
):
    """No longer than the context, and no larger than the pool."""
    kv, shapes, compute = KVPool(model.config, num_blocks, 4, "float32", DEVICE), [], model.compute

    def watched(batch, kv):
        logits = compute(batch, kv)
        shapes.append((len(batch.token_ids), len(logits), len(set(batch.slots.tolist()))))
        kv.tensor[batch.slots // 4] = 1  # whatever the weights make of it
        return logits

    monkeypatch.setattr(model, "compute", watched)
    try_a_step(model, kv, EngineSection(max_batch_tokens=max_batch_tokens, max_running=max_running))
    assert shapes == [(rows, samples, rows)]
    assert not kv.tensor.any() and model.kv_rows_written == 0


def test_a_pool_that_leaves_no_room_for_a_step_is_refused(model, monkeypatch):
    kv = KVPool(model.config, 64, 4, "float32", DEVICE)
    monkeypatch.setattr(model, "compute", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no room")))
    with pytest.raises(ConfigError, match=r"max_batch_tokens = 17: .* \[cache\] num_blocks = 64, of 3,072 bytes each"):
        try_a_step(model, kv, EngineSection(max_batch_tokens=17))
