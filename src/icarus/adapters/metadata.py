"""`icarus.json`: what an adapter folder says about how it was trained. Written by the trainer beside PEFT's files.

{"format": 1, "mode": "shared", "base_digest": "<64 hex digits>"}
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from icarus.adapters.small_file import read_small_file
from icarus.errors import FailedPreconditionError, InvalidInputError
from icarus.types import AdapterMode

FILE_NAME = "icarus.json"
FORMAT = 1


@dataclass(frozen=True)
class AdapterMetadata:
    """How an adapter was trained, and on which base model."""

    mode: AdapterMode
    base_digest: str


def read_metadata(folder: Path) -> AdapterMetadata | None:
    """None where the folder has no `icarus.json`: an adapter that our trainer did not make.

    Raises InvalidInputError naming the file and what is wrong in it.
    """
    path = folder / FILE_NAME
    try:
        fields = json.loads(read_small_file(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"{path} cannot be read: {error}") from None
    if not isinstance(fields, dict):
        raise InvalidInputError(f"{path} holds {type(fields).__name__}, not an object")
    if fields.get("format") != FORMAT:
        raise InvalidInputError(f"{path} has format {fields.get('format')!r}; this version reads format {FORMAT}")
    mode, base_digest = fields.get("mode"), fields.get("base_digest")
    if mode not in list(AdapterMode):
        raise InvalidInputError(f"{path} has mode {mode!r}; it must be one of {', '.join(AdapterMode)}")
    if not isinstance(base_digest, str) or not re.fullmatch("[0-9a-f]{64}", base_digest):
        raise InvalidInputError(f"{path} has base_digest {base_digest!r}; it must be 64 hex digits")
    return AdapterMetadata(AdapterMode(mode), base_digest)


def write_metadata(folder: Path, metadata: AdapterMetadata) -> None:
    """Writes `icarus.json` into a folder that exists."""
    fields = {"format": FORMAT, "mode": metadata.mode, "base_digest": metadata.base_digest}
    (folder / FILE_NAME).write_text(json.dumps(fields, indent=2) + "\n")


def resolve_mode(
    name: str,
    requested: AdapterMode | None,
    metadata: AdapterMetadata | None,
    base_digest: str,
    allow_other_base: bool = False,
) -> AdapterMode:
    """The mode to serve an adapter in: what its metadata says, unless the operator asks for private.

    Raises FailedPreconditionError where that would be a guess, and for an adapter of another base that the operator
    does not allow.
    """
    if metadata is None:
        if requested is AdapterMode.PRIVATE:
            return AdapterMode.PRIVATE
        asked = "was asked for as shared" if requested else "was loaded without a mode"
        raise FailedPreconditionError(
            f"adapter {name!r} {asked} but has no {FILE_NAME}, so nothing says that it reads the base's KV; "
            "load it with mode private, or train it again with Icarus"
        )
    if metadata.base_digest != base_digest and not allow_other_base:
        raise FailedPreconditionError(
            f"adapter {name!r} was trained on the base with digest {metadata.base_digest}, but this server's base has "
            f"digest {base_digest}; serve it on its own base, train it again on this one, or name it in [worker] "
            "other_base_adapters to serve it all the same"
        )
    if requested is AdapterMode.SHARED and metadata.mode is AdapterMode.PRIVATE:
        raise FailedPreconditionError(
            f"adapter {name!r} was trained in private mode and cannot be served as shared; load it with mode private,"
            " or train it again as shared"
        )
    return requested or metadata.mode
