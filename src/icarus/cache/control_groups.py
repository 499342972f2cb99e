"""The memory that a container leaves its processes: Linux's control groups, version 2."""

from collections.abc import Iterator
from pathlib import Path

_MEMBERSHIP = Path("/proc/self/cgroup")
_ROOT = Path("/sys/fs/cgroup")
_PAGE_CACHE = ("active_file", "inactive_file")
"""Counted as taken, but it gives way."""


def room_in_groups(membership: Path = _MEMBERSHIP, root: Path = _ROOT) -> Iterator[int]:
    """Bytes that may still be taken, in each group around this process that has a limit: one in a container, none
    elsewhere as a rule."""
    lines = membership.read_text().splitlines() if membership.exists() else []
    for line in lines:
        if line.startswith("0::/"):
            own = root / line.removeprefix("0::/")  # in a container it may not be there to see: the root is its group
            yield from (_room(folder) for folder in (own, *own.parents) if _has_limit(folder))


def _has_limit(folder: Path) -> bool:
    limit = folder / "memory.max"
    return limit.exists() and limit.read_text().strip() != "max"


def _room(folder: Path) -> int:
    limit, taken = (int((folder / name).read_text()) for name in ("memory.max", "memory.current"))
    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return max(0, limit - taken + sum(int(stat[kind]) for kind in _PAGE_CACHE))
