"""Rotary position embedding as config.json describes it. No torch; `rotation.py` computes it."""

from dataclasses import dataclass

from icarus.model.config_file import ConfigFile

SUPPORTED_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True)
class LinearScaling:
    """Every angle is divided by `factor`."""

    factor: float

    def canonical(self) -> str:
        return f"linear factor={self.factor!r}"


@dataclass(frozen=True)
class Llama3Scaling:
    """Angles that turn slowly over the original context are divided by `factor`, those that turn fast are kept, and
    between the two bounds (in turns over the original context) the change is gradual."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int

    def canonical(self) -> str:
        return (
            f"llama3 factor={self.factor!r} low={self.low_freq_factor!r} high={self.high_freq_factor!r} "
            f"original={self.original_context}"
        )


@dataclass(frozen=True)
class RopeConfig:
    """Half-rotation form over the whole head: dimension i turns with dimension i + dim / 2."""

    theta: float
    dim: int
    scaling: LinearScaling | Llama3Scaling | None = None

    def canonical(self) -> str:
        """Equal text for equal rotation; part of `cache_fingerprint`."""
        kind = self.scaling.canonical() if self.scaling else "default"
        return f"{kind} theta={self.theta!r} dim={self.dim}"


def read_rope(file: ConfigFile, head_dim: int) -> RopeConfig:
    """transformers 5 writes `rope_parameters`, earlier ones `rope_theta` and `rope_scaling`. ConfigError names what is
    not supported, and two that differ."""
    new, old = file.part("rope_parameters"), file.part("rope_scaling")
    rope = _read(file, new if new.raw else old, head_dim, 10000.0)
    if new.raw and old.raw and (other := _read(file, old, head_dim, rope.theta)) != rope:
        raise file.error(
            f"rope_parameters ({rope.canonical()}) and rope_scaling ({other.canonical()}) differ; keep the one that "
            "the model was trained with"
        )
    return rope


def _read(file: ConfigFile, parameters: ConfigFile, head_dim: int, default_theta: float) -> RopeConfig:
    if nested := [key for key, value in parameters.raw.items() if isinstance(value, dict)]:
        raise parameters.error(f"one RoPE for each kind of layer ({', '.join(nested)}) is not supported")
    fraction = parameters.get("partial_rotary_factor", file.get("partial_rotary_factor", 1.0))
    if fraction != 1.0:
        raise file.error(f"partial_rotary_factor {fraction} is not supported; supported is 1.0")
    if head_dim % 2:
        raise file.error(f"head_dim {head_dim} is odd; RoPE needs an even one")
    theta = parameters.number("rope_theta", file.number("rope_theta", default_theta))
    return RopeConfig(theta, head_dim, _read_scaling(parameters))


def _read_scaling(parameters: ConfigFile) -> LinearScaling | Llama3Scaling | None:
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(parameters.number("factor"))
    if kind == "llama3":
        return _read_llama3(parameters)
    raise parameters.error(f"RoPE type {kind!r} is not supported; supported are {', '.join(SUPPORTED_TYPES)}")


def _read_llama3(parameters: ConfigFile) -> Llama3Scaling:
    low, high = parameters.number("low_freq_factor"), parameters.number("high_freq_factor")
    if high <= low:
        raise parameters.error(f"high_freq_factor {high} is not above low_freq_factor {low}")
    return Llama3Scaling(parameters.number("factor"), low, high, parameters.integer("original_max_position_embeddings"))
