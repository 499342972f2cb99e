"""Writes `sync.py` out of `aio.py` (`make client`): the same client without async and await."""

import re
import sys
from pathlib import Path

_HEAD = '"""The client for threads. Written out of `aio.py` by `make client`: change that."""\n'
_RULES = (
    (r'\A""".*?"""\n', _HEAD),
    (r"\bawait ", ""),
    (r"\basync def ", "def "),
    (r"\bAsync(?=[A-Z])", ""),
    (r"\b__a(enter|exit)__", r"__\1__"),
    (r"\bconnection_aio\b", "connection_sync"),
    (r"made and used within one event loop", "safe to use from several threads"),
)


def sync_of(source: str) -> str:
    """The module for threads; its lines are yet to be broken anew."""
    for pattern, replacement in _RULES:
        source = re.sub(pattern, replacement, source, flags=re.DOTALL)
    return source


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(sync_of(Path(__file__).with_name("aio.py").read_text()))
