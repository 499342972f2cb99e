"""Model names as label values: never more than a known number of them, whatever callers ask for."""

from collections.abc import Callable, Collection

MAX_MODELS = 64
"""Names that get series of their own in one process; the rest share "other"."""
OTHER = "other"


class ModelLabels:
    """Gives a name its own label value where it is `known` when it first comes, and there is room.

    A name once given stays: it may still be wanted for turns that began before its adapter was unloaded.
    """

    def __init__(self, base_model: str, known: Callable[[], Collection[str]] | None = None):
        """`base_model` stands for the empty name too. `known` None takes every name, until there is no more room."""
        self._base_model = base_model
        self._known = known
        self._given = {base_model}

    def label(self, name: str) -> str:
        """Called from one thread."""
        name = name or self._base_model
        if name in self._given:
            return name
        if len(self._given) >= MAX_MODELS or (self._known is not None and name not in self._known()):
            return OTHER
        self._given.add(name)
        return name
