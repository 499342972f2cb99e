"""One line of `icarus doctor`."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is. Only FAIL makes the command fail."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """What was found, and what to do about it where it is not OK."""

    level: Level
    name: str
    value: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.level:<4}  {self.name:<18}  {self.value}" + (f" -- {self.advice}" if self.advice else "")


def ok(name: str, value: str) -> Finding:
    return Finding(Level.OK, name, value)


def warn(name: str, value: str, advice: str) -> Finding:
    return Finding(Level.WARN, name, value, advice)


def fail(name: str, value: str, advice: str) -> Finding:
    return Finding(Level.FAIL, name, value, advice)


def size(num_bytes: float) -> str:
    """Bytes as people read them: 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.4g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:,.1f} TiB"
