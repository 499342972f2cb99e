"""What has to be said of compute threads before torch is loaded: their CPUs, and how idle ones wait."""

import os
import re

from icarus.config import EngineSection
from icarus.errors import ConfigError

_SPINS, _POLICY = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"


def set_up_threads(engine: EngineSection) -> None:
    """Of this process, all that it starts from here on included. Raises ConfigError for CPUs that it cannot have."""
    if engine.cpus:
        _bind(engine.cpus)
    if _POLICY not in os.environ:  # what the user's environment says comes first: OpenMP takes it from there alone
        os.environ.setdefault(_SPINS, str(engine.thread_spins))


def parse_cpus(text: str) -> set[int]:
    """{0, 1, 2, 3, 8} for "0-3,8", as taskset has it. Raises ConfigError."""
    cpus: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part.strip())
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if first > last:
            raise ConfigError(f"[engine] cpus: {part.strip()!r} of {text!r} is no CPU, as 8, and no range, as 0-3")
        cpus |= set(range(first, last + 1))
    return cpus


def _bind(text: str) -> None:
    cpus = parse_cpus(text)
    if not hasattr(os, "sched_setaffinity"):
        raise ConfigError("[engine] cpus: this system binds no process to CPUs; leave it empty")
    allowed = os.sched_getaffinity(0)
    if missing := cpus - allowed:
        raise ConfigError(
            f"[engine] cpus: {_shown(missing)} of {text!r} are none of the CPUs that this process may use, "
            f"{_shown(allowed)}"
        )
    os.sched_setaffinity(0, cpus)


def _shown(cpus: set[int]) -> str:
    """As `parse_cpus` takes them."""
    ranges: list[list[int]] = []
    for cpu in sorted(cpus):
        if ranges and cpu == ranges[-1][1] + 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in ranges)
