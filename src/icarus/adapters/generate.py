"""Random adapters in PEFT's format: for tests, benchmarks, and the demo's other specialists."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save_file

from icarus.adapters.metadata import AdapterMetadata, write_metadata
from icarus.adapters.peft_config import FILE_NAME as CONFIG_FILE_NAME
from icarus.adapters.peft_folder import FILE_NAME, PARENTS
from icarus.types import AdapterMode

SHARED_TARGETS = ("q_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""What a specialist that reads the base's KV may adapt."""


class ModelShape(Protocol):
    """The part of a model's configuration that an adapter's shapes depend on."""

    @property
    def num_layers(self) -> int: ...
    @property
    def linear_shapes(self) -> Mapping[str, tuple[int, int]]:
        """Module -> (out, in)."""
        ...


def write_random_adapter(
    folder: str | Path,
    model: ModelShape,
    base_digest: str,
    rank: int,
    seed: int,
    targets: Sequence[str] = SHARED_TARGETS,
    b_scale: float = 0.02,
    mode: AdapterMode | None = AdapterMode.SHARED,
) -> Path:
    """Writes a PEFT folder of float32 weights that the seed decides, and returns it. It is made if need be.

    A has standard deviation 1 / sqrt(in); B has `b_scale`, and with 0 the adapter changes nothing. The scaling is 2.
    `mode` None leaves `icarus.json` out, as an adapter from another trainer would.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shapes, generator = model.linear_shapes, torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(model.num_layers):
        for target in targets:
            out_size, in_size = shapes[target]
            key = f"base_model.model.model.layers.{layer}.{PARENTS[target]}.{target}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(rank, in_size, generator=generator) / in_size**0.5
            tensors[f"{key}.lora_B.weight"] = torch.randn(out_size, rank, generator=generator) * b_scale
    save_file(tensors, folder / FILE_NAME)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(targets),
        "inference_mode": True,
    }
    (folder / CONFIG_FILE_NAME).write_text(json.dumps(config, indent=2) + "\n")
    if mode is not None:
        write_metadata(folder, AdapterMetadata(mode, base_digest))
    return folder
