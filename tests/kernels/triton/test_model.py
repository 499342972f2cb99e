"""A whole forward over Triton's kernels gives what the CPU's path gives; decode batches do so when padded, too."""

import pytest
import torch
from model.setups import make_setup, new_pool, prefill, run, tokens

from icarus.model.batch import RowPlan, StepBatch
from icarus.model.cuda_graph import copy_tensors, on_device, widen
from icarus.model.padded_batch import DecodeShape, pad

FIRST, SECOND = [5, 2, 9], [1, 7, 3]
IDS = tokens(40, seed=1)


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return make_setup("qwen3, window 8 in layers 0 and 2, group 3", tmp_path_factory.mktemp("model"))


def test_a_chunk_over_tritons_kernels(setup, triton_layers):
    """Of a specialist's prompt whose first part is cached, to the first token; beside a private specialist's."""
    plans = [
        RowPlan(IDS[17:30], 17, 13, True, True, FIRST, setup.adapters["a"]),
        RowPlan(IDS[:4], 0, 4, False, False, SECOND, setup.adapters["private"]),
    ]
    pool = new_pool(setup, 16)
    prefill(setup, pool, IDS[:17], FIRST, 17)
    expected = run(setup, pool, *plans)
    with triton_layers():
        torch.testing.assert_close(run(setup, pool, *plans), expected, atol=1e-4, rtol=0)


def decode_plans(setup):
    """All kinds of decode rows; both of the private adapter come last."""
    a, d, private = (setup.adapters[name] for name in ("a", "d", "private"))
    return [
        RowPlan(IDS[36:37], 36, 0, True, True, FIRST, d),
        RowPlan(IDS[37:38], 37, 1, True, True, FIRST, a),
        RowPlan(IDS[36:37], 36, 0, True, True, FIRST),
        RowPlan(IDS[33:34], 33, 1, False, True, SECOND, private),
        RowPlan(IDS[32:33], 32, 0, True, True, SECOND, private),
    ]


def test_a_padded_batch_gives_the_same_logits_and_writes_the_same_kv(setup, triton_layers):
    """As by a graph: a batch is copied into the tensors of another one of its shape and computed there."""
    plans, pool = decode_plans(setup), new_pool(setup, 16)
    prefill(setup, pool, IDS[:37], FIRST, 37)
    prefill(setup, pool, IDS[:33], SECOND, 33, "private")
    padded_pool = new_pool(setup, 16)
    padded_pool.tensor.copy_(pool.tensor)
    batch, other = (StepBatch.build(chosen, 16, "cpu") for chosen in (plans, plans[1:2] * 4 + plans[:1] * 4))
    shape = DecodeShape.of(batch)
    assert shape is not None and shape == DecodeShape.of(other)
    static = widen(pad(other, shape, 64), 7)
    copy_tensors(pad(batch, shape, 64), static)
    with triton_layers():
        logits = setup.model.compute(static, padded_pool)[: len(plans)]
    torch.testing.assert_close(logits, setup.model.forward(batch, pool), atol=1e-4, rtol=0)
    torch.testing.assert_close(padded_pool.tensor, pool.tensor, atol=1e-5, rtol=0, equal_nan=True)


def test_padding_keeps_dtypes(setup):
    """Or a kernel would be compiled a second time, for rows of another one."""
    batch = StepBatch.build(decode_plans(setup), 16, "cpu")
    padded = pad(batch, DecodeShape(8, True, 16), 64)
    assert batch.every.attention.row_ids.dtype is padded.every.attention.row_ids.dtype is torch.int32
    assert batch.sampled.index.dtype is padded.sampled.index.dtype is torch.int64


def test_an_adapters_rows_of_both_kinds_are_parted(setup):
    private = decode_plans(setup)[3:]
    batch = StepBatch.build([*private, private[1]], 16, "cpu")
    assert batch.every.adapted.bounds.tolist() == [[0, 3]]
    padded = pad(batch, DecodeShape(4, True, 16), 64)
    assert padded.every.adapted.bounds.tolist() == [[0, 1], [4, 6], [0, 0], [0, 0]]
    assert torch.equal(padded.every.adapted.entries[1], setup.adapters["private"].table.entries)
    assert padded.slots.tolist() == [3 * 16 + 1, -1, -1, -1], "position 33 is the second of block 3"


def test_shapes(setup):
    def shape(*plans):
        return DecodeShape.of(StepBatch.build(plans, 16, "cpu"))

    a, d = setup.adapters["a"], setup.adapters["d"]
    paired = RowPlan(IDS[:1], 0, 1, True, True, FIRST, a)
    assert shape(paired) == DecodeShape(1, True, 16)
    assert shape(*[paired] * 5, RowPlan(IDS[:1], 0, 1, True, True, FIRST, d)) == DecodeShape(8, True, 16)
    assert shape(*[paired] * 9) == DecodeShape(16, True, 16) and shape(*[paired] * 17) == DecodeShape(24, True, 16)
    assert shape(RowPlan(IDS[:1], 0, 1, False, True, FIRST)) == DecodeShape(1, False, 0)
    assert shape(paired, RowPlan(IDS[:2], 0, 2, False, True, FIRST)) is None, "a chunk"
    assert shape(paired, RowPlan(IDS[:1], 0, 1, False, False, FIRST)) is None, "a prefill's last token"


def test_a_copy_on_a_device_is_no_view(setup):
    batch = StepBatch.build(decode_plans(setup), 16, "cpu")
    copy = on_device(batch, torch.device("cpu"))
    before = batch.every.attention.block_tables.clone()
    copy.every.attention.block_tables.zero_()
    assert torch.equal(batch.every.attention.block_tables, before) and copy.num_writes == batch.num_writes
