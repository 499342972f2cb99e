"""Reads a LoRA from the folder that PEFT saved, without peft. What cannot be served is refused by name."""

import hashlib
import os
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from icarus.adapters.lora import LoraWeights
from icarus.adapters.metadata import read_metadata, resolve_mode
from icarus.adapters.peft_config import DEFAULT_MAX_RANK, PeftConfig, read_config
from icarus.adapters.peft_config import FILE_NAME as CONFIG_FILE_NAME
from icarus.errors import InvalidInputError
from icarus.types import AdapterMode

FILE_NAME = "adapter_model.safetensors"

PARENTS = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), "self_attn"),
    **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), "mlp"),
}
"""The modules that may carry LoRA weights, and where in a layer they are."""
_WRITES_KV = {"k_proj", "v_proj"}
_NO_LAYER = {"embed_tokens", "lm_head"}

_KEY_PATTERN = re.compile(r"base_model\.model\.model\.layers\.(0|[1-9][0-9]{0,4})\.(\w+)\.(\w+)\.lora_([AB])\.weight")
_REFUSED_KEYS = (
    ("lora_magnitude_vector", "DoRA is not supported; train it as plain LoRA"),
    ("embed", "LoRA on embeddings is not supported; leave embed_tokens out of target_modules"),
    ("lm_head", "LoRA on lm_head is not supported; leave it out of target_modules"),
    ("modules_to_save", "modules_to_save is not supported; train it with LoRA weights alone"),
    ("bias", "trained biases are not supported; train it with bias='none'"),
)
_DTYPES = {"F32", "F16", "BF16"}

Module = tuple[int, str]
"""(layer, "q_proj")"""


def load_peft_folder(
    folder: str | Path,
    name: str,
    mode: AdapterMode | None,
    shapes: Mapping[str, tuple[int, int]],
    num_layers: int,
    base_digest: str,
    dtype: torch.dtype,
    device: torch.device | str,
    max_rank: int = DEFAULT_MAX_RANK,
    allow_other_base: bool = False,
) -> LoraWeights:
    """Loads the adapter in `folder` for a base whose projections have `shapes` (module -> (out, in)).

    `mode` None takes what `icarus.json` says; `allow_other_base` passes over the base that it names. B comes back
    multiplied by its scaling, both matrices in `dtype`.

    Raises InvalidInputError for what can never be served on this base, FailedPreconditionError for an adapter of
    another base and for a mode that its metadata does not support.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InvalidInputError(f"adapter {name!r}: {folder} is not a folder; give a folder that PEFT saved")
    config = read_config(folder, name, max_rank)
    mode = resolve_mode(name, mode, read_metadata(folder), base_digest, allow_other_base)
    raw = _read_tensors(folder / FILE_NAME, name, config, shapes, num_layers)
    if mode is AdapterMode.SHARED and (writers := sorted({module for _, module in raw} & _WRITES_KV)):
        raise InvalidInputError(
            f"adapter {name!r} has weights for {' and '.join(writers)}, so it needs a KV cache of its own and cannot "
            "be shared; load it with mode private, or train it again without them"
        )
    return LoraWeights(
        name=name,
        digest=_digest(raw, config),
        mode=mode,
        rank=max(a.shape[0] for a, _ in raw.values()),
        num_layers=num_layers,
        modules={
            module: _prepare(name, module, a, b, config.scaling_of(_path(*module)), dtype, device)
            for module, (a, b) in raw.items()
        },
    )


def _path(layer: int, module: str) -> str:
    return f"model.layers.{layer}.{PARENTS[module]}.{module}"


def _key(layer: int, module: str, half: str) -> str:
    return f"base_model.model.{_path(layer, module)}.lora_{half}.weight"


def _read_tensors(
    path: Path, name: str, config: PeftConfig, shapes: Mapping[str, tuple[int, int]], num_layers: int
) -> dict[Module, tuple[Tensor, Tensor]]:
    """(layer, module) -> A, B as they are stored, in order. The whole header is checked before any data is read."""
    if not path.is_file():
        raise InvalidInputError(f"adapter {name!r}: {path} does not exist; save the adapter as safetensors")
    if not os.access(path, os.R_OK):  # PEFT's file comes out readable by its owner alone
        raise InvalidInputError(f"adapter {name!r}: user {os.getuid()} may not read {path}; chmod a+r it")
    try:
        with safe_open(path, framework="pt") as file:
            keys = [_parse_key(name, key) for key in sorted(file.keys())]
            for layer, module, half in keys:
                if layer >= num_layers:
                    raise InvalidInputError(
                        f"adapter {name!r} has weights for layer {layer}, but the base has layers 0 to "
                        f"{num_layers - 1}; it was made for another base"
                    )
                rank, (out_size, in_size) = config.rank_of(_path(layer, module)), shapes[module]
                expected = [rank, in_size] if half == "A" else [out_size, rank]
                _check_stored(name, file.get_slice(_key(layer, module, half)), _key(layer, module, half), expected)
            targets = config.targets & (shapes.keys() | _NO_LAYER)  # as PEFT skips names that the base has not
            _check_complete(name, keys, targets, num_layers)
            modules = sorted({(layer, module) for layer, module, _ in keys})
            return {at: (_copy(file, _key(*at, "A")), _copy(file, _key(*at, "B"))) for at in modules}
    except (SafetensorError, OSError) as error:
        raise InvalidInputError(
            f"adapter {name!r}: {path} is truncated or damaged ({error}); copy or save it again"
        ) from None


def _copy(file: Any, key: str) -> Tensor:
    """A tensor of its own: safetensors maps the file, and whoever writes over it would change the weights in use."""
    return file.get_tensor(key).clone()


def _check_stored(name: str, stored: Any, key: str, expected: list[int]) -> None:
    """`stored` is a safetensors slice: its shape and dtype come from the header."""
    if stored.get_shape() != expected:
        raise InvalidInputError(
            f"adapter {name!r}: {key} has shape {stored.get_shape()}, but this base and the adapter's configured rank "
            f"need {expected}; it was made for another base, or its {CONFIG_FILE_NAME} is not its own"
        )
    if stored.get_dtype() not in _DTYPES:
        raise InvalidInputError(
            f"adapter {name!r}: {key} is stored as {stored.get_dtype()}; save it as {' or '.join(sorted(_DTYPES))}"
        )


def _parse_key(name: str, key: str) -> tuple[int, str, str]:
    """A tensor's name -> layer, module, "A" or "B"."""
    match = _KEY_PATTERN.fullmatch(key)
    if match and PARENTS.get(match[3]) == match[2]:
        return int(match[1]), match[3], match[4]
    for word, problem in _REFUSED_KEYS:
        if word in key:
            raise InvalidInputError(f"adapter {name!r}: {problem} (tensor {key})")
    raise InvalidInputError(f"adapter {name!r}: tensor {key} is no LoRA weight of {', '.join(PARENTS)} in a layer")


def _check_complete(name: str, keys: Iterable[tuple[int, str, str]], targets: Iterable[str], num_layers: int) -> None:
    """Every A has its B, and every module that the configuration names has both in every layer."""
    there = set(keys)
    if not there:
        raise InvalidInputError(f"adapter {name!r}: {FILE_NAME} holds no tensors; save the adapter again")
    named = {(layer, target) for layer in range(num_layers) for target in targets}
    wanted = named | {(layer, module) for layer, module, _ in there}
    missing = sorted((*at, half) for at in wanted for half in "AB" if (*at, half) not in there)
    if missing:
        layer, module, half = missing[0]
        raise InvalidInputError(
            f"adapter {name!r}: lora_{half} of {module} in layer {layer} is missing ({len(missing)} missing in all): "
            "the adapter is not complete, or was made for another base"
        )


def _prepare(
    name: str, at: Module, a: Tensor, b: Tensor, scaling: float, dtype: torch.dtype, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """A, B as stored -> A, scaling * B in the compute dtype, laid out as `LoraTable` wants them; the product is made in
    float32."""
    prepared = a.to(dtype), (b.float() * scaling).to(dtype).t().contiguous().t()
    for half, tensor in zip("AB", prepared, strict=True):
        if not tensor.isfinite().all():
            raise InvalidInputError(
                f"adapter {name!r}: lora_{half} of {at[1]} in layer {at[0]} has NaN or infinite weights in "
                f"{str(dtype).removeprefix('torch.')}; the training diverged, or the dtype is too narrow"
            )
    return prepared[0].to(device), prepared[1].to(device)


def _digest(raw: Mapping[Module, tuple[Tensor, Tensor]], config: PeftConfig) -> str:
    """SHA-256 in hex over what decides the adapter's arithmetic: each module, its scaling and its stored tensors."""
    digest = hashlib.sha256(b"icarus-adapter-v1")
    for at in sorted(raw):
        digest.update(_framed(_path(*at).encode()) + struct.pack("<d", config.scaling_of(_path(*at))))
        for tensor in raw[at]:
            digest.update(_framed(f"{tensor.dtype} {tuple(tensor.shape)}".encode()))
            digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _framed(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data
