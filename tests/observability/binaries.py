"""Debian's prometheus and promtool."""

import os
import shutil

import pytest


def require(name: str) -> str:
    """Where the program is. A machine without it skips the test, but CI must have it."""
    path = shutil.which(name)
    if path is None and os.environ.get("CI"):
        pytest.fail(f"{name} is not installed, and .ci/run was to bring it")
    if path is None:
        pytest.skip(f"{name} is not installed; on Debian and Ubuntu: apt-get install prometheus")
    return path
