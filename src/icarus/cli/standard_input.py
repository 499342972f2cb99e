"""What a command reads from its standard input."""

from collections.abc import Iterator
from contextlib import contextmanager

from icarus.errors import InvalidInputError


@contextmanager
def decoding() -> Iterator[None]:
    """Reads within it raise InvalidInputError for bytes that are not in the terminal's encoding."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"standard input has byte {error.object[error.start]:#04x} at offset {error.start}, which is not "
            f"{error.encoding}; convert it, for example with iconv"
        ) from None
