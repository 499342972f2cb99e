"""How plans become rows."""

import pytest

from icarus.adapters.lora import LoraWeights
from icarus.model.batch import RowPlan, StepBatch
from icarus.types import AdapterMode

A, B = (LoraWeights(name, name, AdapterMode.SHARED, 1, 1, {}) for name in "AB")
P = LoraWeights("P", "P", AdapterMode.PRIVATE, 1, 1, {})


def test_rows_of_one_adapter_are_contiguous_within_each_stream():
    plans = [
        RowPlan([10], 4, 1, True, True, [0, 1], A),
        RowPlan([20, 21], 0, 2, False, True, [2], P),
        RowPlan([30], 3, 1, True, True, [3], B),
        RowPlan([40, 41, 42], 0, 3, False, False, [4], None),
        RowPlan([50], 2, 0, True, True, [5], A),
        RowPlan([60], 1, 0, True, True, [6], P),
    ]
    batch = StepBatch.build(plans, 4, "cpu")
    assert batch.token_ids.tolist() == [40, 41, 42, 10, 30, 20, 21, 10, 50, 30, 60]
    assert batch.positions.tolist() == [0, 1, 2, 4, 3, 0, 1, 4, 2, 3, 1]
    assert batch.slots.tolist() == [16, 17, 18, 4, 15, 8, 9]
    assert batch.every.adapted is not None
    assert batch.every.adapted.segments == ((5, 7, P.table), (7, 9, A.table), (9, 10, B.table), (10, 11, P.table))
    assert batch.sampled.index is not None and batch.sampled.index.tolist() == [6, 7, 8, 9, 10]
    assert batch.sample_order.tolist() == [1, 0, 3, 2, 4]


def test_a_step_that_samples_nothing():
    batch = StepBatch.build([RowPlan([1, 2], 0, 2, False, False, [0])], 4, "cpu")
    assert batch.sample_order.tolist() == [] and batch.sampled.attention.num_rows == 0


@pytest.mark.parametrize(
    ("token_ids", "num_writes", "read_row", "adapter", "message"),
    [
        ([1, 2], 1, False, None, "2 token ids for 1 write rows"),
        ([1], 0, False, None, "needs a read row"),
        ([1], 1, True, None, "only a shared adapter"),
        ([1], 1, True, P, "only a shared adapter"),
    ],
)
def test_plans_that_make_no_sense(token_ids, num_writes, read_row, adapter, message):
    with pytest.raises(ValueError, match=message):
        RowPlan(token_ids, 0, num_writes, read_row, True, [0], adapter)
