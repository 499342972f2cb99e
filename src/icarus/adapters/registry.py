"""The adapters that a worker has loaded, by name."""

import threading

from icarus.adapters.lora import LoraWeights
from icarus.errors import AlreadyExistsError, NotFoundError


class AdapterRegistry:
    """Name -> weights. Safe to use from any thread.

    A turn keeps the LoraWeights it was admitted with, so removing a name does not touch turns that run.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._adapters: dict[str, LoraWeights] = {}

    def add(self, weights: LoraWeights) -> LoraWeights:
        """Returns what the name stands for now: the weights that are there already if they are the same.

        Raises AlreadyExistsError where the name is taken by other weights or by another mode.
        """
        with self._lock:
            held = self._adapters.setdefault(weights.name, weights)
        if (held.digest, held.mode) != (weights.digest, weights.mode):
            raise AlreadyExistsError(
                f"adapter {weights.name!r} is loaded already, with digest {held.digest} in mode {held.mode}, not "
                f"{weights.digest} in mode {weights.mode}; unload it first or choose another name"
            )
        return held

    def remove(self, name: str) -> LoraWeights:
        """Raises NotFoundError."""
        with self._lock:
            if name not in self._adapters:
                raise self._not_found(name)
            return self._adapters.pop(name)

    def get(self, name: str) -> LoraWeights:
        """Raises NotFoundError."""
        with self._lock:
            if name not in self._adapters:
                raise self._not_found(name)
            return self._adapters[name]

    def list(self) -> tuple[LoraWeights, ...]:
        """By name."""
        with self._lock:
            return tuple(self._adapters[name] for name in sorted(self._adapters))

    def _not_found(self, name: str) -> NotFoundError:
        loaded = ", ".join(sorted(self._adapters)) or "none"
        return NotFoundError(f"adapter {name!r} is not loaded here; loaded are {loaded}")
