"""A model folder's tensors: safetensors, sharded or not, memory-mapped."""

from collections.abc import Set
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from icarus.errors import ConfigError
from icarus.model.weight_files import weight_files

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""What a checkpoint may store, by safetensors' names. Others are quantised: their scales are tensors of their own."""


class StoredTensors:
    """A folder's tensors, each read when it is asked for: a device then holds no second copy of the whole model."""

    def __init__(self, folder: Path, dtype: torch.dtype, device: str):
        """Raises ConfigError for files that cannot be read, and for a tensor that is stored quantised."""
        self._folder = folder
        self._dtype = dtype
        readers = [_open(file, device) for file in weight_files(folder)]
        self._readers = {name: reader for reader in readers for name in reader.keys()}  # noqa: SIM118
        for name in self._readers:
            self._stored_dtype(name)

    @property
    def names(self) -> Set[str]:
        return self._readers.keys()

    def read(self, name: str) -> Tensor:
        """The tensor in the asked dtype. One that is stored in it, on the CPU, is a view of the mapped file.

        Raises ConfigError where it has values that the dtype cannot hold.
        """
        dtype = self._dtype
        tensor = self._readers[name].get_tensor(name).to(dtype)
        is_narrower = torch.finfo(dtype).max < torch.finfo(self._stored_dtype(name)).max
        if is_narrower and not tensor.isfinite().all():
            raise ConfigError(
                f"model {self._folder}: tensor {name} has values beyond {str(dtype).removeprefix('torch.')}, or that "
                "are no numbers; serve it in a wider dtype"
            )
        return tensor

    def _stored_dtype(self, name: str) -> torch.dtype:
        stored = self._readers[name].get_slice(name).get_dtype()
        if stored not in _DTYPES:
            raise ConfigError(
                f"model {self._folder}: tensor {name} is stored as {stored}; quantized weights are not supported, use "
                f"the unquantized checkpoint ({', '.join(_DTYPES)})"
            )
        return _DTYPES[stored]


def is_never_read(name: str, tied: bool) -> bool:
    """Checkpoints may carry the frequencies of RoPE, and an lm_head where the embedding is one; no model uses them."""
    return name.endswith(".rotary_emb.inv_freq") or (tied and name == "lm_head.weight")


def _open(file: Path, device: str):
    try:
        return safe_open(file, framework="pt", device=device)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{file} cannot be read: {error}; fetch the model again") from None
