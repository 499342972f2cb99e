"""A model folder's tensors: safetensors, sharded or not, memory-mapped."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from icarus.errors import ConfigError

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""What a checkpoint may store, by safetensors' names. Others are quantised: their scales are tensors of their own."""

Progress = Callable[[int, int], None]
"""Called with (tensors loaded, tensors in all)."""


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, in order: the single one where there is one, as transformers takes them.
    ConfigError where there are none or one is missing."""
    index = folder / "model.safetensors.index.json"
    if index.exists() and not (folder / "model.safetensors").exists():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ConfigError(f"{index} is not a safetensors index: {error!r}") from None
    else:
        names = ["model.safetensors"]
    files = [folder / name for name in names]
    if missing := [file.name for file in files if not file.exists()]:
        raise ConfigError(f"{folder} lacks {', '.join(missing)}; a model folder has config.json and safetensors files")
    return files


def load_tensors(
    folder: Path, dtype: torch.dtype, device: str, progress: Progress | None = None
) -> Mapping[str, Tensor]:
    """Every tensor by name. A tensor of the asked dtype and on the CPU stays a view of the mapped file.

    Raises ConfigError for a tensor that is stored quantised, and for one that `dtype` cannot hold.
    """
    tensors: dict[str, Tensor] = {}
    readers = [_open(file, device) for file in weight_files(folder)]
    names = [(reader, name) for reader in readers for name in reader.keys()]  # noqa: SIM118
    for done, (reader, name) in enumerate(names, 1):
        tensors[name] = _load(folder, reader, name, dtype)
        if progress:
            progress(done, len(names))
    return tensors


def is_never_read(name: str, tied: bool) -> bool:
    """Checkpoints may carry the frequencies of RoPE, and an lm_head where the embedding is one; no model uses them."""
    return name.endswith(".rotary_emb.inv_freq") or (tied and name == "lm_head.weight")


def _load(folder: Path, reader: Any, name: str, dtype: torch.dtype) -> Tensor:
    stored = reader.get_slice(name).get_dtype()
    if stored not in _DTYPES:
        raise ConfigError(
            f"model {folder}: tensor {name} is stored as {stored}; quantized weights are not supported, use the "
            f"unquantized checkpoint ({', '.join(_DTYPES)})"
        )
    tensor = reader.get_tensor(name).to(dtype)
    if torch.finfo(dtype).max < torch.finfo(_DTYPES[stored]).max and not tensor.isfinite().all():
        raise ConfigError(
            f"model {folder}: tensor {name} has values beyond {str(dtype).removeprefix('torch.')}, or that are no "
            "numbers; serve it in a wider dtype"
        )
    return tensor


def _open(file: Path, device: str):
    try:
        return safe_open(file, framework="pt", device=device)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{file} cannot be read: {error}; fetch the model again") from None
