"""The small JSON files beside a model's weights."""

import json
from pathlib import Path
from typing import Any

from icarus.errors import ConfigError


def read_json(path: Path) -> dict[str, Any]:
    """Empty where the file is absent. Raises ConfigError where it is not a JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}; it must be a JSON object")
    return content


def special_tokens(folder: Path) -> dict[str, str]:
    """`bos_token`, `eos_token` and so on of tokenizer_config.json, by name."""
    entries = read_json(folder / "tokenizer_config.json").items()
    texts = {key: value.get("content") if isinstance(value, dict) else value for key, value in entries}
    return {key: text for key, text in texts.items() if key.endswith("_token") and isinstance(text, str)}


def control_tokens(folder: Path) -> set[str]:
    """The texts that tokenizer_config.json names as special tokens, whatever tokenizer.json says of them."""
    config = read_json(folder / "tokenizer_config.json")
    entries = [config.get(f"{name}_token") for name in _CONTROL_NAMES]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        more = config.get(key) or []
        entries += more.values() if isinstance(more, dict) else more
    texts = (entry.get("content") if isinstance(entry, dict) else entry for entry in entries)
    return {text for text in texts if isinstance(text, str)}


_CONTROL_NAMES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
