"""A step before the worker serves: whether a GPU that holds the weights and the pool has room to compute, too."""

from collections.abc import Sequence

import torch

from icarus.cache.kv import KVPool
from icarus.config import EngineSection
from icarus.errors import ConfigError
from icarus.model.batch import RowPlan, StepBatch
from icarus.model.two_stream import TwoStreamModel


def try_a_step(model: TwoStreamModel, kv: KVPool, settings: EngineSection) -> None:
    """The largest step of the base, in a pool that holds nothing yet. What it took stays with torch for those to come.

    Raises ConfigError where there is no memory for it.
    """
    plans = _largest_step(model, kv, settings)
    try:
        model.compute(StepBatch.build(plans, kv.block_size, model.device), kv)
        kv.tensor[: len(plans[0].block_ids)].zero_()
        if model.device.type == "cuda":
            torch.cuda.current_stream(model.device).synchronize()
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"[engine] max_batch_tokens = {settings.max_batch_tokens}: the GPU has no room for a step of so many rows "
            f"beside the weights and [cache] num_blocks = {kv.num_blocks}, of {kv.block_bytes:,} bytes each; lower "
            "either"
        ) from error


def _largest_step(model: TwoStreamModel, kv: KVPool, settings: EngineSection) -> Sequence[RowPlan]:
    """As many requests that decode as may run, and one with a chunk. They share a table, for their positions differ."""
    num_tokens = min(settings.max_batch_tokens, model.config.context_length, kv.num_blocks * kv.block_size)
    block_ids = range(-(-num_tokens // kv.block_size))
    num_decodes = min(settings.max_running, num_tokens) - 1
    num_writes = [1] * num_decodes + [num_tokens - num_decodes]
    return [
        RowPlan([0] * count, start, count, read_row=False, sample=True, block_ids=block_ids)
        for start, count in enumerate(num_writes)
    ]
