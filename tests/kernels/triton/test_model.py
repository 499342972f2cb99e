"""A whole forward over Triton's kernels gives what the CPU's path gives."""

import pytest
import torch
from icarus_kernels.kv_store_triton import store_kv_triton
from icarus_kernels.paged_attention_triton import paged_attention_triton
from icarus_kernels.segmented_lora_triton import add_segmented_lora_triton
from model.setups import make_setup, new_pool, run, tokens

from icarus.model import layers
from icarus.model.batch import RowPlan


def logits_of_three_steps(setup):
    """A chunk; then its second part beside a private specialist's prompt; then all kinds of decode rows at once."""
    ids, pool = tokens(40, seed=1), new_pool(setup, 16)
    first, second = [5, 2, 9], [1, 7, 3]
    a, d, private = (setup.adapters[name] for name in ("a", "d", "private"))
    steps = [
        [RowPlan(ids[:17], 0, 17, False, False, first)],
        [
            RowPlan(ids[17:37], 17, 20, True, True, first, a),
            RowPlan(ids[:33], 0, 33, False, True, second, private),
        ],
        [
            RowPlan(ids[36:37], 36, 0, True, True, first, d),
            RowPlan(ids[37:38], 37, 1, True, True, first, a),
            RowPlan(ids[33:34], 33, 1, False, True, second, private),
            RowPlan(ids[36:37], 36, 0, True, True, first),
        ],
    ]
    return [run(setup, pool, *plans) for plans in steps]


def test_a_forward_with_tritons_kernels(tmp_path, monkeypatch, device):
    if device.type == "cuda":
        pytest.skip("there the model takes these kernels by itself: tests/model and tests/engine")
    setup = make_setup("qwen3, window 8 in layers 0 and 2, group 3", tmp_path)
    expected = logits_of_three_steps(setup)
    monkeypatch.setattr(layers, "paged_attention", paged_attention_triton)
    monkeypatch.setattr(layers, "store_kv", store_kv_triton)
    monkeypatch.setattr(layers, "add_segmented_lora", add_segmented_lora_triton)
    for got, logits in zip(logits_of_three_steps(setup), expected, strict=True):
        torch.testing.assert_close(got, logits, atol=1e-4, rtol=0)
