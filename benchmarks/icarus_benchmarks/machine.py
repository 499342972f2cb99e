"""What a benchmark ran on: a figure says nothing without it."""

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from icarus.errors import ConfigError

_PACKAGES = ("icarus-serve", "torch", "nixl", "triton", "numba")


@dataclass(frozen=True)
class Machine:
    """The machine and the versions of what counts on it."""

    cpu: str
    cores: int
    memory_bytes: int
    accelerator: str
    """Empty where there is none."""
    system: str
    python: str
    packages: dict[str, str]
    load_average: float
    """Of the last minute, when the benchmark ended. Its own work is in it."""


def describe_machine(device: str = "cpu") -> Machine:
    """`device` as in `[model] device`: an accelerator is named where one is used."""
    return Machine(
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        accelerator=_accelerator(device),
        system=platform.platform(),
        python=platform.python_version(),
        packages={name: found for name in _PACKAGES if (found := _version(name))},
        load_average=os.getloadavg()[0],
    )


def resident_bytes() -> int:
    """Of this process, mapped files that are in memory included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def require_device(device: str) -> None:
    """Raises ConfigError where `device` is cuda and there is no GPU."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"torch {torch.__version__} finds no GPU here; --device cpu measures the CPU")


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _accelerator(device: str) -> str:
    if not device.startswith("cuda"):
        return ""
    import torch

    return torch.cuda.get_device_name(device)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
