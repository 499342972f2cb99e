"""The adapters that a worker knows, by name, and which of them have their weights in memory."""

import weakref
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path

from icarus.adapters.lora import LoraWeights
from icarus.errors import AlreadyExistsError, NotFoundError, OverloadedError
from icarus.types import AdapterInfo, AdapterMode


@dataclass(frozen=True)
class AdapterCounts:
    """How often weights were put into memory, gave way to others, and were dropped with their name."""

    loaded: int = 0
    evicted: int = 0
    unloaded: int = 0


@dataclass
class _Entry:
    """What a name stands for. `weights` is None while it is evicted; `held` finds them while a turn still has them."""

    folder: Path
    digest: str
    mode: AdapterMode
    rank: int
    weights: LoraWeights | None
    held: "weakref.ref[LoraWeights]"
    pinned: bool = False

    def is_same(self, weights: LoraWeights) -> bool:
        return (self.digest, self.mode) == (weights.digest, weights.mode)


class AdapterRegistry:
    """Name -> folder and weights. At most `max_resident` names have their weights here (0: all of them); the least
    recently used gives way, pinned ones never. Used from one thread; reads no disk.

    A turn keeps the LoraWeights it was admitted with, so whatever happens to a name does not touch turns that run.
    """

    def __init__(self, max_resident: int = 0):
        self._max_resident = max_resident
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        """Least recently used first."""
        self.revision = 0
        """Counts the changes that `list` shows."""
        self.counts = AdapterCounts()

    def add(self, weights: LoraWeights, folder: Path, replace: bool = False, pin: bool = False) -> AdapterInfo:
        """Makes a name stand for weights that were read from `folder`. A name that was pinned stays so.

        Raises AlreadyExistsError where it stands for other weights or another mode and `replace` is not set,
        OverloadedError where every slot is pinned.
        """
        name, entry = weights.name, self._entries.get(weights.name)
        if entry is not None and not replace and not entry.is_same(weights):
            raise AlreadyExistsError(
                f"adapter {name!r} is loaded already, with digest {entry.digest} in mode {entry.mode}, not "
                f"{weights.digest} in mode {weights.mode}; load it with replace, unload it first or choose another name"
            )
        self.require_slot(name)
        pinned = pin or (entry is not None and entry.pinned)
        if entry is not None and entry.is_same(weights):
            weights = entry.weights or entry.held() or weights
            entry.folder, entry.pinned = folder, pinned
        else:
            self._entries[name] = _Entry(
                folder, weights.digest, weights.mode, weights.rank, None, weakref.ref(weights), pinned
            )
        self._make_resident(name, weights)
        return self.info(name)

    def remove(self, name: str) -> None:
        """Raises NotFoundError."""
        self._entry(name)
        del self._entries[name]
        self.counts = replace(self.counts, unloaded=self.counts.unloaded + 1)
        self.revision += 1

    def info(self, name: str) -> AdapterInfo:
        """Raises NotFoundError."""
        entry = self._entry(name)
        return AdapterInfo(name, entry.digest, entry.mode, entry.rank, entry.weights is not None, entry.pinned)

    def list(self) -> tuple[AdapterInfo, ...]:
        """By name."""
        return tuple(self.info(name) for name in sorted(self._entries))

    def folder(self, name: str) -> Path:
        """Where its weights were read from. Raises NotFoundError."""
        return self._entry(name).folder

    def use(self, name: str) -> LoraWeights | None:
        """The weights, which count as used just now; None where they must be read again.

        Raises NotFoundError, and OverloadedError where they are not here and every slot is pinned.
        """
        entry = self._entry(name)
        if entry.weights is None:
            self.require_slot(name)
            if (weights := entry.held()) is None:
                return None
            self._make_resident(name, weights)
        self._entries.move_to_end(name)
        return entry.weights

    def restore(self, weights: LoraWeights) -> None:
        """Puts weights that were read again into a slot, unless the name is gone or stands for others by now.

        Raises OverloadedError where every slot is pinned.
        """
        entry = self._entries.get(weights.name)
        if entry is not None and entry.is_same(weights):
            self.require_slot(weights.name)
            self._make_resident(weights.name, weights)

    def set_pinned(self, name: str, pinned: bool) -> None:
        """An adapter must be resident when it is pinned (see `use`). Raises NotFoundError."""
        self._entry(name).pinned = pinned
        self.revision += 1

    def require_slot(self, name: str) -> None:
        """Raises OverloadedError where `name` has no slot and each is pinned by another."""
        pinned = [other for other, entry in self._entries.items() if entry.pinned and other != name]
        if 0 < self._max_resident <= len(pinned):
            raise OverloadedError(
                f"adapter {name!r} has no room on this worker: all {self._max_resident} slots are pinned by "
                f"{', '.join(sorted(pinned))}; unpin one, or raise [worker] max_resident_adapters"
            )

    def _make_resident(self, name: str, weights: LoraWeights) -> None:
        entry = self._entries[name]
        self.counts = replace(self.counts, loaded=self.counts.loaded + (entry.weights is None))
        entry.weights, entry.held = weights, weakref.ref(weights)
        self._entries.move_to_end(name)
        resident = [other for other in self._entries.values() if other.weights is not None]
        excess = len(resident) - self._max_resident if self._max_resident else 0
        evictable = (other for other in resident if not other.pinned and other is not entry)
        for _, other in zip(range(excess), evictable, strict=False):
            other.weights = None
            self.counts = replace(self.counts, evicted=self.counts.evicted + 1)
        self.revision += 1

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            loaded = ", ".join(sorted(self._entries)) or "none"
            raise NotFoundError(f"adapter {name!r} is not loaded here; loaded are {loaded}")
        return self._entries[name]
