"""An adapter's weights in the form the forward pass reads."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from icarus.types import AdapterMode


@dataclass(frozen=True, eq=False)
class LoraWeights:
    """One loaded LoRA adapter. Compared by identity: a reloaded adapter is another one.

    Each module's delta is `x @ A.T @ B.T`; a module may have a smaller rank than `rank`.
    """

    name: str
    digest: str
    mode: AdapterMode
    rank: int
    """The largest rank of any module."""
    modules: Mapping[tuple[int, str], tuple[Tensor, Tensor]]
    """(layer, "q_proj") -> A [rank, in], B [out, rank]; B is already multiplied by its scaling."""
