"""What tells one model family from another. No torch: the gateway reads model folders too."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from icarus.model.config_file import ConfigFile


@dataclass(frozen=True)
class LayerTraits:
    """How a model's layers differ from the plain one: RMSNorm, attention with RoPE, RMSNorm, gated MLP, no biases."""

    biased: frozenset[str] = frozenset()
    """Linear modules that have a bias, by PEFT's names: "q_proj"."""
    qk_norm: bool = False
    """Whether each head of q and of k goes through an RMSNorm before RoPE."""
    windows: tuple[int | None, ...] = ()
    """One a layer: a row at position p sees positions (p - window, p]; None: all up to p. Empty: no layer has one."""


@dataclass(frozen=True)
class Family:
    """An architecture that is supported."""

    architecture: str
    """As config.json's `architectures` has it."""
    read_traits: Callable[[ConfigFile], LayerTraits]
    """Raises ConfigError naming what of the family is not supported."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What a config.json that lacks these keys means: transformers' defaults, where they are the family's own."""
