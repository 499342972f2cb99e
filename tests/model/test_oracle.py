"""The model against transformers + peft (tests/oracle.py): tiny random models in float32, logits within 1e-4."""

import oracle
import pytest
import torch
from model.setups import MODELS, NUM_BLOCKS, TOLERANCE, Setup, last_step, make_setup, new_pool, prefill, run, tokens

from icarus.model.batch import RowPlan
from icarus.types import AdapterMode


@pytest.fixture(scope="module", params=MODELS)
def setup(request, tmp_path_factory) -> Setup:
    return make_setup(request.param, tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("block_size", [4, 16])
@pytest.mark.parametrize("adapter", [None, "a", "b", "zero", "private"])
def test_lengths_around_block_edges(setup, adapter, block_size):
    ids = tokens(2 * block_size + 1, seed=block_size)
    for length in (1, 2, block_size - 1, block_size, block_size + 1, 2 * block_size, 2 * block_size + 1):
        pool, prompt = new_pool(setup, block_size), ids[:length]
        weights = setup.adapter(adapter)
        shared = weights is not None and weights.mode is AdapterMode.SHARED
        # one chunk, and the last token's row with it
        logits = run(setup, pool, RowPlan(prompt, 0, length, shared, True, [5, 3, 9], weights))
        torch.testing.assert_close(logits[0], setup.expected(adapter, prompt), **TOLERANCE)


@pytest.mark.parametrize("chunk", [1, 3, 4, 7])
@pytest.mark.parametrize("adapter", [None, "a", "private"])
def test_chunked_prefill_then_decode(setup, adapter, chunk):
    pool, ids, blocks = new_pool(setup, 4), tokens(22, seed=chunk), [9, 1, 8, 2, 7, 3]
    prefill(setup, pool, ids[:17], blocks, chunk, adapter if adapter == "private" else None)
    for length in range(18, 23):
        logits = run(setup, pool, last_step(setup, pool, adapter, ids[:length], blocks))
        torch.testing.assert_close(logits[0], setup.expected(adapter, ids[:length]), **TOLERANCE)


def test_one_batch_of_everything(setup):
    """Four adapters, a zero one, the base, a private one, read-only rows of three kinds and a prefill chunk."""
    pool, block_size = new_pool(setup, 4), 4
    free = torch.randperm(NUM_BLOCKS, generator=torch.Generator().manual_seed(1)).tolist()
    names = ["a", None, "private", "b", "zero", "a", "c", "private", "d", None, "b"]
    read_only = {5, 7, 9}
    plans, expected = [], []
    for i, name in enumerate(names):
        ids = tokens(3 + 2 * i, seed=i)
        blocks = [free.pop() for _ in range(-(-len(ids) // block_size))]
        written = ids if i in read_only else ids[:-1]
        prefill(setup, pool, written, blocks, 8, name if name == "private" else None)
        plan = last_step(setup, pool, name, ids, blocks)
        if i in read_only:
            plan = RowPlan(ids[-1:], len(ids) - 1, 0, True, True, blocks, setup.adapter(name))
        plans.append(plan)
        expected.append(setup.expected(name, ids))
    chunk = RowPlan(tokens(9, seed=99), 0, 9, False, False, [free.pop() for _ in range(3)], None)
    plans.insert(4, chunk)
    before, rows = pool.tensor.clone(), setup.model.kv_rows_written
    logits = run(setup, pool, *plans)
    torch.testing.assert_close(logits, torch.stack(expected), **TOLERANCE)
    num_writes = len(names) - len(read_only) + 9
    assert setup.model.kv_rows_written - rows == num_writes
    changed = (before.nan_to_num(1e9) != pool.tensor.nan_to_num(1e9)).any(-1).any(-1)  # [block, layer, k/v, token]
    assert changed.sum() == num_writes * setup.model.config.num_layers * 2


@pytest.mark.parametrize("adapter", [None, "a", "private"])
def test_read_only_last_row(setup, adapter):
    pool, ids, blocks = new_pool(setup, 4), tokens(12, seed=3), [4, 2, 6]
    prefill(setup, pool, ids, blocks, 5, adapter if adapter == "private" else None)
    before, rows = pool.tensor.clone(), setup.model.kv_rows_written
    logits = run(setup, pool, RowPlan(ids[-1:], 11, 0, True, True, blocks, setup.adapter(adapter)))
    torch.testing.assert_close(logits[0], setup.expected(adapter, ids), **TOLERANCE)
    assert torch.equal(before.nan_to_num(1e9), pool.tensor.nan_to_num(1e9))
    assert setup.model.kv_rows_written == rows


@pytest.mark.parametrize("adapter", [None, "b", "private"])
def test_blocks_that_came_from_another_pool(setup, adapter):
    """Full blocks are copied to other places of another pool; the partial tail is computed there."""
    there, here, ids = new_pool(setup, 4), new_pool(setup, 4), tokens(15, seed=7)
    writer = adapter if adapter == "private" else None
    prefill(setup, there, ids[:12], [1, 2, 3], 12, writer)
    here.tensor[[30, 20, 40]] = there.tensor[[1, 2, 3]]
    blocks = [30, 20, 40, 10]
    run(setup, here, RowPlan(ids[12:14], 12, 2, False, False, blocks, setup.adapter(writer)))
    logits = run(setup, here, last_step(setup, here, adapter, ids, blocks))
    torch.testing.assert_close(logits[0], setup.expected(adapter, ids), **TOLERANCE)


def test_served_kv_is_the_same_bytes_whoever_is_served(setup):
    ids, blocks, pools = tokens(24, seed=4), [5, 1, 4, 2, 3, 0], {}
    for name in ("a", "b", "zero"):
        pools[name] = new_pool(setup, 4)
        prefill(setup, pools[name], ids[:10], blocks, 4)
        for length in range(11, 25):
            run(setup, pools[name], last_step(setup, pools[name], name, ids[:length], blocks))
    written = pools["a"].tensor[blocks]
    assert written.isfinite().all()
    for name in ("b", "zero"):
        assert torch.equal(written.view(torch.uint8), pools[name].tensor[blocks].view(torch.uint8))
    layers = written.permute(1, 2, 0, 3, 4, 5).flatten(2, 3)  # [layers, 2, tokens, kv_heads, head_dim]
    torch.testing.assert_close(layers.cpu(), oracle.base_kv(setup.base, ids), **TOLERANCE)


def test_zero_adapter_is_the_base(setup):
    pool, ids, blocks = new_pool(setup, 4), tokens(9, seed=5), [0, 1, 2]
    prefill(setup, pool, ids, blocks, 9)
    plans = [RowPlan(ids[-1:], 8, 0, True, True, blocks, setup.adapter(name)) for name in ("zero", None)]
    zero, base = run(setup, pool, *plans)
    torch.testing.assert_close(zero, base, atol=1e-5, rtol=0)


def test_adapters_matter(setup):
    """Without this the tests above could pass with adapters that do nothing."""
    ids = tokens(9, seed=6)
    base = setup.expected(None, ids)
    for name in ("a", "b", "c", "d", "private"):
        assert (setup.expected(name, ids) - base).abs().max() > 0.01, name
    assert (oracle.private_logits(setup.adapted["a"], ids)[-1] - setup.expected("a", ids)).abs().max() > 0.01
