"""A model folder's tensors: safetensors, sharded or not, memory-mapped."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from icarus.errors import ConfigError

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
    """Every tensor by name. A tensor of the asked dtype and on the CPU stays a view of the mapped file."""
    tensors: dict[str, Tensor] = {}
    readers = [_open(file, device) for file in weight_files(folder)]
    names = [(reader, name) for reader in readers for name in reader.keys()]  # noqa: SIM118
    for done, (reader, name) in enumerate(names, 1):
        tensors[name] = reader.get_tensor(name).to(dtype)
        if progress:
            progress(done, len(names))
    return tensors


def _open(file: Path, device: str):
    try:
        return safe_open(file, framework="pt", device=device)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{file} cannot be read: {error}; fetch the model again") from None
