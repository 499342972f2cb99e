"""The step that a worker tries before it serves, on the CPU: a GPU is short of memory, or not, all the same."""

import pytest
import torch
from tiny import DEVICE, tiny_llama

from icarus.cache.kv import KVPool
from icarus.config import EngineSection
from icarus.engine import sampler
from icarus.errors import ConfigError
from icarus.model.loading import load_model
from icarus.worker.trial_step import try_a_step


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.set_num_threads(1)
    return load_model(tiny_llama(tmp_path_factory.mktemp("trial") / "tiny", context=40), "float32", DEVICE)


@pytest.mark.parametrize(
    ("num_blocks", "max_batch_tokens", "max_running", "rows", "requests"),
    [
        (64, 17, 4, 17, 4),
        (64, 512, 4, 164, 4),
        (64, 64, 32, 64, 32),
        (3, 512, 4, 15, 3),
        (1, 2, 1, 2, 1),
        (64, 8, 4, 8, 4),
    ],
)
def test_the_largest_step_is_tried_and_leaves_nothing_behind(
    model, monkeypatch, num_blocks, max_batch_tokens, max_running, rows, requests
):
    """No request longer than the context, and all of them no larger than the pool."""
    kv, shapes, compute = KVPool(model.config, num_blocks, 4, "float32", DEVICE), [], model.compute
    drawn = []

    def watched(batch, kv):
        logits = compute(batch, kv)
        shapes.append((len(batch.token_ids), len(logits), len(set(batch.slots.tolist()))))
        assert batch.every.adapted.bounds.tolist() == [[batch.num_writes, len(batch.token_ids)]]
        kv.tensor[batch.slots // 4] = 1  # whatever the weights make of it
        return logits

    def watched_noise(logits, keys):
        drawn.append(logits.shape)

    monkeypatch.setattr(model, "compute", watched)
    monkeypatch.setattr(sampler, "add_gumbel_noise", watched_noise)
    try_a_step(model, kv, EngineSection(max_batch_tokens=max_batch_tokens, max_running=max_running))
    assert shapes == [(rows, requests, rows - requests)]
    assert drawn == [(requests, model.config.vocab_size)]
    assert not kv.tensor.any() and model.kv_rows_written == 0


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("no room"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
    ],
    ids=["torch", "cuBLAS", "Triton"],
)
def test_a_pool_that_leaves_no_room_for_a_step_is_refused(model, monkeypatch, error):
    kv = KVPool(model.config, 64, 4, "float32", DEVICE)
    monkeypatch.setattr(model, "compute", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(ConfigError, match=r"max_batch_tokens = 17: .* \[cache\] num_blocks = 64, of 3,072 bytes each"):
        try_a_step(model, kv, EngineSection(max_batch_tokens=17, max_running=4))


def test_another_failure_is_told_as_it_is(model, monkeypatch):
    kv = KVPool(model.config, 64, 4, "float32", DEVICE)
    monkeypatch.setattr(model, "compute", lambda *_: (_ for _ in ()).throw(torch.AcceleratorError("lost")))
    with pytest.raises(torch.AcceleratorError, match="lost"):
        try_a_step(model, kv, EngineSection(max_batch_tokens=17, max_running=4))
