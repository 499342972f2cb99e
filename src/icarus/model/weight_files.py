"""Which files hold a model folder's weights. Light to import."""

import json
from pathlib import Path

from icarus.errors import ConfigError


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
