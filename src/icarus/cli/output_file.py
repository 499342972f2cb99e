"""Files that a command writes its figures to."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from icarus.errors import InvalidInputError


@contextmanager
def writable(option: str, path: str | None) -> Iterator[Path | None]:
    """The path, which can be written: better known before a long run than after. A file that was not there before is
    removed if the body fails. None stays None. Raises InvalidInputError."""
    if not path:
        yield None
        return
    file = Path(path)
    is_new = not file.exists()
    try:
        file.open("a").close()
    except OSError as error:
        raise InvalidInputError(f"{option} {path} cannot be written: {error.strerror}") from None
    try:
        yield file
    except BaseException:
        if is_new:
            file.unlink(missing_ok=True)
        raise
