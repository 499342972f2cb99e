"""transformers' configuration of a model."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from icarus.errors import ConfigError


def read_model_config(folder: str | Path) -> Any:
    """Raises ConfigError where there is none, or one that transformers does not know."""
    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"model {folder} has no configuration that can be read: {reason}") from None


def check_window(config: Any, length: int) -> None:
    """Raises ConfigError for texts beyond the model's sliding window: two streams see all of a text."""
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True) and length > window:
        raise ConfigError(
            f"the model attends to {window} tokens at most, and texts may have {length}: give shorter ones "
            f"(icarus train: --max-length {window})"
        )
