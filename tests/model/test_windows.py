"""Sliding windows against the oracle, at lengths around the window and beyond it."""

import oracle
import pytest
import tiny
import torch
from model.setups import TOLERANCE, WINDOWED, Setup, last_step, make_setup, new_pool, prefill, run, tokens
from transformers import AutoConfig, DynamicCache

from icarus.model.batch import RowPlan

BLOCK_SIZE = 4


@pytest.fixture(scope="module", params=WINDOWED)
def setup(request, tmp_path_factory) -> Setup:
    return make_setup(request.param, tmp_path_factory.mktemp("model"))


def window(setup: Setup) -> int:
    return max(w for w in setup.model.config.windows if w)


@pytest.mark.parametrize("chunk", [3, BLOCK_SIZE, 100])
@pytest.mark.parametrize("adapter", [None, "a", "zero", "private"])
def test_lengths_around_the_window(setup, adapter, chunk):
    size, blocks = window(setup), [9, 1, 8, 2, 7, 3, 6, 4]
    ids = tokens(3 * size + 2, seed=chunk)
    edges = {n * size + d for n in (1, 2, 3) for d in (-1, 0, 1, 2)} | {size + BLOCK_SIZE - 1, size + BLOCK_SIZE}
    for length in sorted(edges):
        pool = new_pool(setup, BLOCK_SIZE)
        prefill(setup, pool, ids[: length - 1], blocks, chunk, adapter if adapter == "private" else None)
        expected = setup.expected(adapter, ids[:length])
        wrote = run(setup, pool, last_step(setup, pool, adapter, ids[:length], blocks))
        torch.testing.assert_close(wrote[0], expected, **TOLERANCE)
        read = run(
            setup, pool, RowPlan(ids[length - 1 : length], length - 1, 0, True, True, blocks, setup.adapter(adapter))
        )
        torch.testing.assert_close(read[0], expected, **TOLERANCE)


@pytest.mark.parametrize("adapter", [None, "b"])
def test_what_left_the_window_is_not_read(setup, adapter):
    """NaN in every block that the windowed layers have left: one read of it would show."""
    size, blocks = window(setup), list(range(20, 0, -1))
    ids = tokens(4 * size, seed=1)
    pool = new_pool(setup, BLOCK_SIZE)
    prefill(setup, pool, ids[:-3], blocks, 5)
    left = (len(ids) - 3 - size + 1) // BLOCK_SIZE
    assert left > 2
    for layer, layer_window in enumerate(setup.model.config.windows):
        if layer_window:
            pool.layer(layer)[blocks[:left]] = torch.nan
    for length in range(len(ids) - 2, len(ids) + 1):
        logits = run(setup, pool, last_step(setup, pool, adapter, ids[:length], blocks))
        torch.testing.assert_close(logits[0], setup.expected(adapter, ids[:length]), **TOLERANCE)


def test_the_oracle_slides(setup):
    """The reference of the tests above (one forward over whole text) is what transformers' own sliding cache gives."""
    ids = tokens(4 * window(setup), seed=2)
    cache = DynamicCache(config=setup.base.config)
    with torch.no_grad():
        rows = [setup.base(torch.tensor([[t]]), past_key_values=cache, use_cache=True).logits[0, 0] for t in ids]
    assert cache.is_sliding == [w is not None for w in setup.model.config.windows]
    torch.testing.assert_close(oracle.base_logits(setup.base, ids), torch.stack(rows), **TOLERANCE)


def test_the_window_matters(setup):
    """Without this the tests above could pass with windows that hide nothing."""
    config = AutoConfig.from_pretrained(setup.folder)
    config.sliding_window = 1000
    unlimited = tiny.load_reference(setup.folder, config=config)
    ids = tokens(2 * window(setup), seed=3)
    within = ids[: min(w for w in setup.model.config.windows if w)]
    torch.testing.assert_close(oracle.base_logits(unlimited, within), oracle.base_logits(setup.base, within))
    assert (oracle.base_logits(unlimited, ids)[-1] - setup.expected(None, ids)).abs().max() > 0.01
