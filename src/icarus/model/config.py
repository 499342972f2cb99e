"""What a model folder says about its model. No torch."""

from dataclasses import dataclass
from pathlib import Path

from icarus.model.config_file import ConfigFile
from icarus.model.families import FAMILIES
from icarus.model.family import Family, LayerTraits
from icarus.model.rope import RopeConfig, read_rope


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
    traits: LayerTraits

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Each layer's sliding window, in tokens; None where it has none."""
        return self.traits.windows or (None,) * self.num_layers

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

    def canonical(self) -> str:
        """All that decides KV bytes and is not in the weights: equal text and equal weights, equal KV.

        Part of `cache_fingerprint`. The window is in it: K and V of the second layer on depend on what earlier layers
        attended to.
        """
        return (
            f"{self.architecture} heads={self.num_heads} kv_heads={self.num_kv_heads} head_dim={self.head_dim} "
            f"eps={self.rms_norm_eps!r} biased={','.join(sorted(self.traits.biased))} qk_norm={self.traits.qk_norm} "
            f"windows={','.join(str(window or 0) for window in self.windows)} rope={self.rope.canonical()}"
        )

    @classmethod
    def from_folder(cls, path: str | Path) -> "ModelConfig":
        """Reads config.json. ConfigError names what is missing or not supported."""
        folder = Path(path)
        file = ConfigFile.read(folder / "config.json")
        family = _family(file)
        file = file.with_defaults(family.defaults)
        if file.get("quantization_config"):
            raise file.error("quantized weights are not supported; use the unquantized checkpoint")
        if (activation := file.get("hidden_act", "silu")) != "silu":
            raise file.error(f"hidden_act {activation!r} is not supported; supported is 'silu'")
        hidden_size, num_heads = file.integer("hidden_size"), file.integer("num_attention_heads")
        num_kv_heads = file.integer("num_key_value_heads", num_heads)
        if num_heads % num_kv_heads:
            raise file.error(f"num_attention_heads {num_heads} is not a multiple of num_key_value_heads {num_kv_heads}")
        head_dim = file.integer("head_dim", hidden_size // num_heads)
        return cls(
            architecture=family.architecture,
            hidden_size=hidden_size,
            intermediate_size=file.integer("intermediate_size"),
            num_layers=file.integer("num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            vocab_size=file.integer("vocab_size"),
            context_length=file.integer("max_position_embeddings"),
            rms_norm_eps=file.number("rms_norm_eps", 1e-6),
            rope=read_rope(file, head_dim),
            tied=file.flag("tie_word_embeddings"),
            traits=family.read_traits(file),
        )


def _family(file: ConfigFile) -> Family:
    names = file.names("architectures") or ["none"]
    if names[0] not in FAMILIES:
        raise file.error(f"architecture {names[0]} is not supported; supported are {', '.join(sorted(FAMILIES))}")
    return FAMILIES[names[0]]
