"""Qwen2 and Qwen2.5: biases on q, k and v; the upper layers may have a sliding window."""

from icarus.model.config_file import ConfigFile
from icarus.model.family import Family, LayerTraits

FULL, SLIDING = "full_attention", "sliding_attention"


def _read_traits(file: ConfigFile) -> LayerTraits:
    return LayerTraits(biased=frozenset({"q_proj", "k_proj", "v_proj"}), windows=read_windows(file))


def read_windows(file: ConfigFile) -> tuple[int | None, ...]:
    """`layer_types` says which layers have the window; without it, those from `max_window_layers` on have it."""
    num_layers, window = file.integer("num_hidden_layers"), None
    if file.flag("use_sliding_window") and file.get("sliding_window") is not None:
        window = file.integer("sliding_window")
    if (kinds := file.names("layer_types")) is None:
        first = file.get("max_window_layers", 28)
        if not isinstance(first, int):
            raise file.error(f"max_window_layers is {first!r}; it must be an integer")
        return tuple(window if layer >= first else None for layer in range(num_layers))
    if len(kinds) != num_layers:
        raise file.error(f"layer_types names {len(kinds)} layers and num_hidden_layers is {num_layers}")
    if unknown := sorted(set(kinds) - {FULL, SLIDING}):
        raise file.error(f"layer_types {', '.join(unknown)} is not supported; supported are {FULL} and {SLIDING}")
    if SLIDING in kinds and window is None:
        raise file.error(f"layer_types has {SLIDING}, but use_sliding_window and sliding_window give no window")
    return tuple(window if kind == SLIDING else None for kind in kinds)


FAMILY = Family("Qwen2ForCausalLM", _read_traits, {"num_key_value_heads": 32, "sliding_window": 4096})
