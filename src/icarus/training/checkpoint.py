"""The state of a run after a step: all that the next step depends on and that the settings do not decide."""

import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from icarus.errors import IcarusError, InvalidInputError

_NUM_KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """`rng` holds each process's generator states; only dropout draws from them."""

    num_steps_done: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    rng: list[dict[str, Any]]


def trained_weights(model: PeftModel) -> dict[str, Tensor]:
    """The LoRA weights as they are trained, by parameter name."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if "lora_" in name}


def load_weights(model: PeftModel, weights: dict[str, Tensor]) -> None:
    for name, parameter in trained_weights(model).items():
        parameter.copy_(weights[name])


def rng_state() -> dict[str, Any]:
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Readers see no half-written file. The two newest are kept. Raises IcarusError where it cannot be written."""
    file, partial = folder / _name(checkpoint.num_steps_done), folder / "partial"
    content = io.BytesIO()
    torch.save(vars(checkpoint), content)  # its errors for a file do not say what is wrong
    try:
        folder.mkdir(exist_ok=True)
        partial.write_bytes(content.getbuffer())
        os.replace(partial, file)
    except OSError as error:
        raise IcarusError(
            f"checkpoint {file} cannot be written: {error.strerror}; when it can be, go on with --resume"
        ) from None
    for old in checkpoint_files(folder)[:-_NUM_KEPT]:
        old.unlink()


def drop_checkpoint(folder: Path, num_steps_done: int) -> None:
    """Removes the checkpoint after so many steps, where there is one."""
    (folder / _name(num_steps_done)).unlink(missing_ok=True)


def _name(num_steps_done: int) -> str:
    return f"step-{num_steps_done:06d}.pt"


def checkpoint_files(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(file for file in folder.glob("step-*.pt") if re.fullmatch(r"step-\d+", file.stem))


def load_newest(folder: Path) -> Checkpoint | None:
    """None where there is no checkpoint yet. Raises InvalidInputError where the newest is damaged."""
    files = checkpoint_files(folder)
    if not files:
        return None
    try:
        return Checkpoint(**torch.load(files[-1], map_location="cpu", weights_only=True))
    except Exception as error:  # torch has no common base for what a damaged file can cause
        raise InvalidInputError(
            f"checkpoint {files[-1]} cannot be read ({error}); delete it to use the one before"
        ) from None
