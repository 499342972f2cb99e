"""An adapter's weights in the form the forward pass reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from icarus_kernels import LoraTable
from torch import Tensor

from icarus.types import AdapterMode

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""What an adapter may change in a layer. A module's place here is its number in a `LoraTable`."""


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
    num_layers: int
    """Of the base."""
    modules: Mapping[tuple[int, str], tuple[Tensor, Tensor]]
    """(layer, "q_proj") -> A [rank, in], B [out, rank]; B is already multiplied by its scaling."""

    @cached_property
    def table(self) -> LoraTable:
        pairs = {(layer, MODULES.index(module)): pair for (layer, module), pair in self.modules.items()}
        return LoraTable.build(pairs, self.num_layers, len(MODULES))
