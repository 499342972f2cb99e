"""What a model folder says about its model. No torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icarus.errors import ConfigError

SUPPORTED_ARCHITECTURES = ("LlamaForCausalLM",)


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding, half-rotation form over the whole head."""

    theta: float
    dim: int

    def canonical(self) -> str:
        """Equal text for equal rotation; part of `cache_fingerprint`."""
        return f"default theta={self.theta!r} dim={self.dim}"


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only Transformer's shape."""

    architecture: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    """Most tokens of a prompt and its answer."""
    rms_norm_eps: float
    rope: RopeConfig
    tied: bool
    """Whether the embedding is the lm_head too."""
    attention_bias: bool
    mlp_bias: bool
    eos_token_ids: tuple[int, ...]
    """Tokens that end a turn; generation_config.json's where it names any."""

    @property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Every layer's linear modules, by PEFT's names: (out, in)."""
        heads, kv_heads = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {
            "q_proj": (heads, self.hidden_size),
            "k_proj": (kv_heads, self.hidden_size),
            "v_proj": (kv_heads, self.hidden_size),
            "o_proj": (self.hidden_size, heads),
            "gate_proj": (self.intermediate_size, self.hidden_size),
            "up_proj": (self.intermediate_size, self.hidden_size),
            "down_proj": (self.hidden_size, self.intermediate_size),
        }

    @classmethod
    def from_folder(cls, path: str | Path) -> "ModelConfig":
        """Reads config.json and generation_config.json. ConfigError names what is missing or not supported."""
        folder = Path(path)
        raw = _read_json(folder / "config.json")
        reader = _Reader(folder / "config.json", raw)
        architecture = (raw.get("architectures") or ["none"])[0]
        if architecture not in SUPPORTED_ARCHITECTURES:
            raise ConfigError(
                f"{reader.file}: architecture {architecture} is not supported; "
                f"supported are {', '.join(SUPPORTED_ARCHITECTURES)}"
            )
        if raw.get("quantization_config"):
            raise ConfigError(f"{reader.file}: quantized weights are not supported; use the unquantized checkpoint")
        if (activation := raw.get("hidden_act", "silu")) != "silu":
            raise ConfigError(f"{reader.file}: hidden_act {activation!r} is not supported; supported is 'silu'")
        hidden_size, num_heads = reader.integer("hidden_size"), reader.integer("num_attention_heads")
        num_kv_heads = reader.integer("num_key_value_heads", num_heads)
        if num_heads % num_kv_heads:
            raise ConfigError(
                f"{reader.file}: num_attention_heads {num_heads} is not a multiple of "
                f"num_key_value_heads {num_kv_heads}"
            )
        head_dim = reader.integer("head_dim", hidden_size // num_heads)
        generation = folder / "generation_config.json"
        eos = (_read_json(generation) if generation.exists() else {}).get("eos_token_id", raw.get("eos_token_id"))
        return cls(
            architecture=architecture,
            hidden_size=hidden_size,
            intermediate_size=reader.integer("intermediate_size"),
            num_layers=reader.integer("num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            vocab_size=reader.integer("vocab_size"),
            context_length=reader.integer("max_position_embeddings"),
            rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            rope=_rope(reader, head_dim),
            tied=bool(raw.get("tie_word_embeddings", False)),
            attention_bias=bool(raw.get("attention_bias", False)),
            mlp_bias=bool(raw.get("mlp_bias", False)),
            eos_token_ids=() if eos is None else (eos,) if isinstance(eos, int) else tuple(eos),
        )


@dataclass(frozen=True)
class _Reader:
    file: Path
    raw: Mapping[str, Any]

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.raw.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{self.file}: {key} is {value!r}; it must be a positive integer")
        return value


def _rope(reader: _Reader, head_dim: int) -> RopeConfig:
    """transformers 5 writes `rope_parameters`, earlier ones `rope_theta` and `rope_scaling`."""
    raw = reader.raw
    parameters = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind != "default":
        raise ConfigError(f"{reader.file}: RoPE type {kind!r} is not supported; supported is 'default'")
    fraction = parameters.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))
    if fraction != 1.0:
        raise ConfigError(f"{reader.file}: partial_rotary_factor {fraction} is not supported; supported is 1.0")
    return RopeConfig(float(parameters.get("rope_theta", raw.get("rope_theta", 10000.0))), head_dim)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{file} does not exist; a model folder has config.json and safetensors files") from None
    except ValueError as error:
        raise ConfigError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{file} holds a {type(value).__name__}, not an object")
    return value
