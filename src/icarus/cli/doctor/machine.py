"""What `icarus doctor` finds on this machine without starting anything."""

import os
import platform
import resource
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from icarus import __version__
from icarus.cli.doctor.finding import Finding, fail, ok, size, warn
from icarus.model.hub import cache_folder

_RDMA_DEVICES = Path("/sys/class/infiniband")
_SHARED_MEMORY = Path("/dev/shm")
INSTALL = "in a checkout, pip install -c constraints.txt '.[engine]'"
_ENGINE = f"workers need it: {INSTALL}; the gateway and the client do not"
_MIN_SHARED_MEMORY = 64 * 2**20
_MIN_DISK = 2**30


def examine_machine() -> Iterator[Finding]:
    """Versions, devices, limits, disk."""
    yield ok(
        "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    )
    yield ok("icarus", __version__)
    yield _package("grpcio", "reinstall Icarus: nothing works without it", fail)
    yield _package("torch", _ENGINE, warn)
    yield _package("nixl", _ENGINE, warn)
    yield _gpu()
    yield _rdma()
    yield _memlock()
    yield _shared_memory()
    yield _disk()
    yield _models()


def is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _package(name: str, advice: str, otherwise=warn) -> Finding:
    return ok(name, metadata.version(name)) if is_installed(name) else otherwise(name, "not installed", advice)


def _gpu() -> Finding:
    if not is_installed("torch"):
        return ok("gpu", "unknown: torch, which would tell, is not installed")
    try:
        import torch
    except (ImportError, OSError) as error:
        return fail("gpu", f"torch cannot be imported: {error}", "install a torch build that fits this machine")
    if not torch.cuda.is_available():
        return ok("gpu", "none that torch can use: workers compute on the CPU")
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return ok("gpu", ", ".join(f"{device.name} ({size(device.total_memory)})" for device in devices))


def _rdma() -> Finding:
    devices = sorted(device.name for device in _RDMA_DEVICES.iterdir()) if _RDMA_DEVICES.is_dir() else []
    return ok("rdma devices", ", ".join(devices) or "none: between machines blocks move over TCP")


def _memlock() -> Finding:
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY:
        return ok("memlock limit", "unlimited")
    if _RDMA_DEVICES.is_dir():
        return warn("memlock limit", size(limit), "RDMA locks the whole KV pool in memory: ulimit -l unlimited")
    return ok("memlock limit", f"{size(limit)}, which matters to RDMA alone")


def _shared_memory() -> Finding:
    name = str(_SHARED_MEMORY)
    if not os.access(_SHARED_MEMORY, os.W_OK):
        advice = "mount a tmpfs there: without it workers of one machine reach each other over TCP"
        return warn(name, "not there, or not writable", advice)
    usage = shutil.disk_usage(_SHARED_MEMORY)
    value = f"{size(usage.total)}, {size(usage.free)} free"
    if usage.free < _MIN_SHARED_MEMORY:
        return warn(name, value, f"keep {size(_MIN_SHARED_MEMORY)} free; in a container: --shm-size")
    return ok(name, value)


def _disk() -> Finding:
    folder = cache_folder()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if not os.access(existing, os.W_OK):
        return fail("disk", f"{folder} cannot be written", "make it writable, or set XDG_CACHE_HOME")
    if free < _MIN_DISK:
        return warn("disk", f"{size(free)} free for {folder}", "make room, or set XDG_CACHE_HOME: models go there")
    return ok("disk", f"{size(free)} free for {folder}")


def _models() -> Finding:
    """The converted models; a folder with a config.json each."""
    folders = sorted(config.parent for config in (cache_folder() / "models").glob("*/*/config.json"))
    models = [f"{folder.name} ({size(_folder_size(folder))})" for folder in folders]
    return ok("model cache", ", ".join(models) or "empty: 'icarus up' or 'icarus demo' fills it")


def _folder_size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
