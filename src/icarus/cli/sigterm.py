"""SIGTERM as an end like any other: what the command has open is closed, and what it started is stopped."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def sigterm_exits() -> Iterator[None]:
    """In the body SIGTERM raises SystemExit, with the exit code that shells have for it. Used in the main thread."""
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
