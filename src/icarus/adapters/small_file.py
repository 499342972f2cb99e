"""The files of settings beside an adapter's weights."""

from pathlib import Path

_MAX_BYTES = 1 << 20


def read_small_file(path: Path) -> str:
    """Raises OSError (FileNotFoundError) where it cannot be read, ValueError for what is no file of text of a MiB."""
    size = path.stat().st_size
    if not path.is_file():  # a pipe would never end
        raise ValueError("it is no regular file")
    if size > _MAX_BYTES:
        raise ValueError(f"it has {size} bytes; {_MAX_BYTES} at most are read")
    return path.read_text()
