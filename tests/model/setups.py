"""Tiny models of every family with adapters, for the model and for the oracle; and steps over them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import oracle
import tiny
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from icarus.adapters.lora import LoraWeights
from icarus.cache.kv import KVPool
from icarus.model.batch import RowPlan, StepBatch
from icarus.model.loading import load_model
from icarus.model.two_stream import TwoStreamModel
from icarus.types import AdapterMode

TOLERANCE = {"atol": 1e-4, "rtol": 0.0}
NUM_BLOCKS = 64
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
"""A head of 16 has angles that are kept, that are scaled and that are between."""
WINDOWED: dict[str, dict[str, Any]] = {
    "mistral, window 6, group 4": {"family": "mistral", "heads": 8, "kv_heads": 2, "tie": False, "sliding_window": 6},
    "qwen2, window 5 from layer 1 on, group 1": {
        "family": "qwen2",
        "heads": 2,
        "kv_heads": 2,
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 1,
    },
    "qwen3, window 8 in layers 0 and 2, group 3": {
        "family": "qwen3",
        "heads": 6,
        "kv_heads": 2,
        "use_sliding_window": True,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
}
MODELS: dict[str, dict[str, Any]] = {
    "llama, group 1, untied": {"family": "llama", "heads": 3, "kv_heads": 3, "tie": False},
    "llama, group 3, biases": {
        "family": "llama",
        "heads": 6,
        "kv_heads": 2,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "llama, group 4, untied": {"family": "llama", "heads": 8, "kv_heads": 2, "tie": False},
    "llama, llama3 RoPE": {"family": "llama", "rope_parameters": LLAMA3},
    "llama, linear RoPE": {"family": "llama", "rope_parameters": LINEAR},
    "qwen2, group 3": {"family": "qwen2", "heads": 6, "kv_heads": 2},
    "qwen3, group 4, hidden size 40 for heads of 8 x 16": {
        "family": "qwen3",
        "heads": 8,
        "kv_heads": 2,
        "hidden": 40,
        "tie": False,
        "attention_bias": True,
    },
    **WINDOWED,
}


@dataclass
class Setup:
    folder: Path
    model: TwoStreamModel
    adapters: dict[str, LoraWeights]
    adapter_folders: dict[str, Path]

    @cached_property
    def base(self) -> PreTrainedModel:
        return tiny.load_reference(self.folder)

    @cached_property
    def adapted(self) -> dict[str, PeftModel]:
        return {name: tiny.load_adapted_reference(self.folder, path) for name, path in self.adapter_folders.items()}

    def expected(self, adapter: str | None, token_ids: list[int]) -> torch.Tensor:
        """The oracle's logits of the last token."""
        if adapter is None:
            return oracle.base_logits(self.base, token_ids)[-1]
        run = oracle.private_logits if adapter == "private" else oracle.shared_logits
        return run(self.adapted[adapter], token_ids)[-1]

    def adapter(self, name: str | None) -> LoraWeights | None:
        return None if name is None else self.adapters[name]


def make_setup(name: str, root: Path) -> Setup:
    """The model `name` of MODELS, written to `root`: shared adapters a to d, a zero one and a private one."""
    folder = tiny.tiny_model(root / "base", **MODELS[name], seed=3)
    make = tiny.tiny_adapter
    folders = {
        "a": make(root / "a", folder, rank=4, seed=1),
        "b": make(root / "b", folder, rank=7, seed=2, rslora=True),
        "c": make(root / "c", folder, rank=1, seed=3, targets=("q_proj", "down_proj")),
        "d": make(root / "d", folder, rank=16, seed=4),
        "zero": make(root / "zero", folder, rank=4, seed=5, zero=True),
        "private": make(root / "private", folder, rank=5, seed=6, targets=tiny.PRIVATE_TARGETS),
    }
    modes = {n: AdapterMode.PRIVATE if n == "private" else AdapterMode.SHARED for n in folders}
    adapters = {n: tiny.read_adapter(path, modes[n]) for n, path in folders.items()}
    return Setup(folder, load_model(folder, "float32"), adapters, folders)


def new_pool(setup: Setup, block_size: int) -> KVPool:
    """Poisoned: a read of what nobody wrote shows as NaN."""
    pool = KVPool(setup.model.config, NUM_BLOCKS, block_size, "float32", "cpu")
    pool.tensor.fill_(torch.nan)
    return pool


def tokens(length: int, seed: int) -> list[int]:
    return torch.randint(3, 259, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def run(setup: Setup, pool: KVPool, *plans: RowPlan) -> torch.Tensor:
    batch = StepBatch.build(plans, pool.block_size, "cpu")
    return setup.model.forward(batch, pool)


def last_step(setup: Setup, pool: KVPool, adapter: str | None, ids: list[int], blocks: list[int]) -> RowPlan:
    """The plan of the last token of `ids`, once the KV of the others is there."""
    weights = setup.adapter(adapter)
    shared = weights is not None and weights.mode is AdapterMode.SHARED
    return RowPlan(ids[-1:], len(ids) - 1, 1, shared, True, blocks, weights)


def prefill(setup: Setup, pool: KVPool, ids: list[int], blocks: list[int], chunk: int, adapter=None) -> None:
    for start in range(0, len(ids), chunk):
        part = ids[start : start + chunk]
        logits = run(setup, pool, RowPlan(part, start, len(part), False, False, blocks, setup.adapter(adapter)))
        assert logits.shape == (0, setup.model.config.vocab_size)
