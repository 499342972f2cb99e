"""Qwen3, the dense ones: RMSNorm on each head of q and k; the head size is independent of the hidden size."""

from icarus.model.config_file import ConfigFile
from icarus.model.families.llama import ATTENTION
from icarus.model.families.qwen2 import read_windows
from icarus.model.family import Family, LayerTraits


def _read_traits(file: ConfigFile) -> LayerTraits:
    return LayerTraits(
        biased=ATTENTION if file.flag("attention_bias") else frozenset(), qk_norm=True, windows=read_windows(file)
    )


FAMILY = Family("Qwen3ForCausalLM", _read_traits, {"num_key_value_heads": 32, "head_dim": 128, "sliding_window": 4096})
