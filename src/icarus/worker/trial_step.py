"""A step before the worker serves: whether a GPU that holds the weights, the pool and the adapters has room to compute,
too, and to load its kernels."""

from collections.abc import Sequence

import torch

from icarus.adapters.lora import MODULES, LoraWeights
from icarus.cache.kv import KVPool
from icarus.config import EngineSection
from icarus.engine.request import Request
from icarus.engine.sampler import sample
from icarus.errors import ConfigError
from icarus.model.batch import RowPlan, StepBatch
from icarus.model.device_errors import is_out_of_memory
from icarus.model.two_stream import TwoStreamModel
from icarus.types import AdapterMode, BlockHash, RequestId, SamplingParams

_RANK = 16


@torch.inference_mode()
def try_a_step(model: TwoStreamModel, kv: KVPool, settings: EngineSection) -> None:
    """The largest step of a specialist, in a pool that holds nothing yet. What it took stays with torch for those to
    come.

    Raises ConfigError where there is no memory for it.
    """
    try:
        plans = _largest_step(model, kv, settings)
        logits = model.compute(StepBatch.build(plans, kv.block_size, model.device), kv)
        sample(logits, [_drawing(kv.block_size)] * len(plans))
        kv.tensor[: plans[-1].block_ids[-1] + 1].zero_()
        if model.device.type == "cuda":
            torch.cuda.current_stream(model.device).synchronize()
    except Exception as error:
        if not is_out_of_memory(error) and "out of memory" not in str(error):  # Triton says it in a RuntimeError
            raise
        raise ConfigError(
            f"[engine] max_batch_tokens = {settings.max_batch_tokens}: the GPU has no room for a step of so many rows "
            f"beside the weights, the adapters and [cache] num_blocks = {kv.num_blocks}, of {kv.block_bytes:,} bytes "
            "each; lower either"
        ) from error


def _largest_step(model: TwoStreamModel, kv: KVPool, settings: EngineSection) -> Sequence[RowPlan]:
    """As many requests as may run, each with a row that writes and one that reads. The first ones read their prompts,
    as much of them as there are rows, context and blocks for."""
    adapter, blocks = _zero_adapter(model), range(kv.num_blocks)
    num_requests = min(settings.max_running, settings.max_batch_tokens // 2, kv.num_blocks)
    spare, plans = settings.max_batch_tokens - 2 * num_requests, []
    for num_others in reversed(range(num_requests)):
        count = min(1 + spare, model.config.context_length, (len(blocks) - num_others) * kv.block_size)
        num_blocks = -(-count // kv.block_size)
        plans.append(RowPlan([0] * count, 0, count, True, True, blocks[:num_blocks], adapter))
        spare, blocks = spare - (count - 1), blocks[num_blocks:]
    return plans


def _zero_adapter(model: TwoStreamModel) -> LoraWeights:
    """A shared specialist that is the base. Its layers have their matrices in common."""

    def zeros(rows: int, columns: int) -> torch.Tensor:
        return torch.zeros(rows, columns, dtype=model.dtype, device=model.device)

    shapes = {name: model.config.linear_shapes[name] for name in MODULES if name not in ("k_proj", "v_proj")}
    pairs = {name: (zeros(_RANK, in_), zeros(_RANK, out).t()) for name, (out, in_) in shapes.items()}
    num_layers = model.config.num_layers
    modules = {(layer, name): pair for layer in range(num_layers) for name, pair in pairs.items()}
    return LoraWeights("", "", AdapterMode.SHARED, _RANK, num_layers, modules)


def _drawing(block_size: int) -> Request:
    """A request that wants its token drawn."""
    sampling = SamplingParams(temperature=1.0)
    return Request(RequestId(""), [0], None, "", sampling, BlockHash(b""), block_size, sink=lambda event: None)
