"""Ctrl-C while gRPC waits: KeyboardInterrupt in the middle of its locks may come out as another error."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def on_ctrl_c(action: Callable[[], None]) -> Iterator[None]:
    """In the body Ctrl-C calls `action`, in a thread of its own, and raises nothing. Used in the main thread."""
    previous = signal.signal(signal.SIGINT, lambda *_: threading.Thread(target=action).start())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
