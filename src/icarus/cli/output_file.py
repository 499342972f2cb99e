"""Files that a command writes its figures to."""

from pathlib import Path

from icarus.errors import InvalidInputError


def writable(option: str, path: str) -> Path:
    """The path, which can be written: better known before a long run than after. Raises InvalidInputError."""
    try:
        Path(path).touch()
    except OSError as error:
        raise InvalidInputError(f"{option} {path} cannot be written: {error.strerror}") from None
    return Path(path)
