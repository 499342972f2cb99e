"""`icarus pull`: puts a model into a folder that every process of a deployment can read."""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from icarus.errors import ConfigError
from icarus.model.hub import download, find_cached, is_hub_id, locked, resolve_model


def run(args: argparse.Namespace) -> int:
    folder = Path(args.folder)
    if _is_there(folder):
        _say(f"{folder} has a model already")
        return 0
    try:
        if not is_hub_id(args.model):
            _copy(resolve_model(args.model, _say), folder)
        elif cached := find_cached(args.model):
            _say(f"copying {cached}, the local hub cache")
            _copy(cached, folder)
        else:
            _download(args.model, folder)
    except OSError as error:
        if not _is_there(folder):  # another process was quicker
            raise ConfigError(f"model {args.model!r} cannot be put into {folder}: {error}") from None
    _say(f"{args.model} is in {folder}")
    return 0


def _is_there(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _copy(source: Path, folder: Path) -> None:
    """The folder appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder.parent) as partial:
        whole = Path(partial) / folder.name
        shutil.copytree(source, whole)
        whole.rename(folder)


def _download(hub_id: str, folder: Path) -> None:
    """As `_copy` does it, one process at a time. What came of a download that broke off stays beside the folder, where
    the next one goes on with it."""
    partial = folder.parent / f".partial-{folder.name}"
    partial.mkdir(parents=True, exist_ok=True)
    whole = partial / folder.name
    with locked(partial / "lock"):
        try:
            if not _is_there(folder):
                download(hub_id, whole, _say)
                whole.rename(folder)
        finally:
            if not whole.exists():
                shutil.rmtree(partial, ignore_errors=True)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
