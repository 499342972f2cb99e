"""Llama: the plain layer, with biases where config.json says so."""

from icarus.model.config_file import ConfigFile
from icarus.model.family import Family, LayerTraits

ATTENTION = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})
MLP = frozenset({"gate_proj", "up_proj", "down_proj"})


def _read_traits(file: ConfigFile) -> LayerTraits:
    attention = ATTENTION if file.flag("attention_bias") else frozenset()
    return LayerTraits(biased=attention | (MLP if file.flag("mlp_bias") else frozenset()))


FAMILY = Family("LlamaForCausalLM", _read_traits)
