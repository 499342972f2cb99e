"""Mistral: one sliding window for every layer, or none."""

from icarus.model.config_file import ConfigFile
from icarus.model.family import Family, LayerTraits


def _read_traits(file: ConfigFile) -> LayerTraits:
    if file.get("layer_types"):
        raise file.error("layer_types is not supported for MistralForCausalLM: a window is that of all layers")
    if file.get("sliding_window") is None:
        return LayerTraits()
    return LayerTraits(windows=(file.integer("sliding_window"),) * file.integer("num_hidden_layers"))


FAMILY = Family("MistralForCausalLM", _read_traits, {"num_key_value_heads": 8, "sliding_window": 4096})
