"""One NIXL agent at a time starts on this machine: two at the same moment may hang (nixl#1668)."""

import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

_LOCK = Path(tempfile.gettempdir()) / "icarus-nixl-init.lock"
_LOCK_SECONDS = 30.0


@contextmanager
def only_one_initialises() -> Iterator[None]:
    """A lock file in the temporary folder; containers with their own do not see each other. A holder that hangs is
    waited for `_LOCK_SECONDS`, then left behind."""
    try:
        lock = os.open(_LOCK, os.O_RDONLY | os.O_CREAT, 0o644)
    except PermissionError:  # another user's file in a sticky folder may be opened, not "created"
        lock = os.open(_LOCK, os.O_RDONLY)
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while not _try_lock(lock):
            if time.monotonic() > deadline:
                logger.warning("%s was held for %.0f s; starting NIXL without it", _LOCK, _LOCK_SECONDS)
                break
            time.sleep(0.02)
        yield
    finally:
        os.close(lock)


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
