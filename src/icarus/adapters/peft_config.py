"""`adapter_config.json`: which LoRA a PEFT folder holds. Read without peft, by its names and rules."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icarus.adapters.small_file import read_small_file
from icarus.errors import InvalidInputError

FILE_NAME = "adapter_config.json"
DEFAULT_MAX_RANK = 256
"""The highest rank that is served."""

_REFUSED = {
    "use_dora": "DoRA is not supported; train it as plain LoRA",
    "modules_to_save": "modules_to_save (copies of base modules) is not supported; train it with LoRA weights alone",
    "lora_bias": "trained LoRA biases are not supported; train it with lora_bias=False",
}
_READ = {"peft_type", "bias", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights"}
_WITHOUT_EFFECT = {
    # They say where LoRA weights are, which the tensors show, or matter in training only.
    *("target_modules", "layers_to_transform", "layers_pattern", "exclude_modules", "lora_dropout", "eva_config"),
    *("task_type", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping", "peft_version"),
    *("loftq_config", "ensure_weight_tying", "megatron_core", "qalora_group_size", "runtime_config"),
}
_INITS_THAT_KEEP_THE_BASE = (True, False, None, "gaussian", "eva")


@dataclass(frozen=True)
class PeftConfig:
    """What of a LoRA's configuration decides its arithmetic."""

    rank: int
    alpha: float
    rank_pattern: Mapping[re.Pattern[str], int]
    alpha_pattern: Mapping[re.Pattern[str], float]
    use_rslora: bool
    targets: frozenset[str]
    """Names that every layer must have, where the base has them at all; empty where the configuration picks layers or
    modules by a pattern."""

    def rank_of(self, module: str) -> int:
        """`module` is a path like "model.layers.0.self_attn.q_proj"."""
        return _match(self.rank_pattern, module, self.rank)

    def scaling_of(self, module: str) -> float:
        """alpha / r, or alpha / sqrt(r) with rsLoRA."""
        rank = self.rank_of(module)
        return _match(self.alpha_pattern, module, self.alpha) / (math.sqrt(rank) if self.use_rslora else rank)


def _match(pattern: Mapping[re.Pattern[str], Any], module: str, default: Any) -> Any:
    """The value of the first key that is, as a regular expression, the whole module path or a dotted end of it."""
    return next((value for key, value in pattern.items() if key.match(module)), default)


_ATOM = r"(?:[\w-]|\.|\\[.dw-]|\[[\w-]+\])"
_KEY = re.compile(rf"\^?(?:{_ATOM}[*+?]?|\((?:\?:)?{_ATOM}+(?:\|{_ATOM}+)*\)|\|)*\$?")
_MAX_CHOICES = 3
_MAX_KEYS = 1024


def _compile_key(key: str) -> re.Pattern[str]:
    """Raises ValueError for what is more than PEFT writes: an expression that backtracks can take years.

    Names, dots, classes of characters, `a|b`, and few of `*`, `+`, `?` after one character and of `(a|b)`.
    """
    if not _KEY.fullmatch(key):
        raise ValueError("more than names, dots, \\d, \\w, (a|b) and *, + or ? after one of them")
    if sum(map(key.replace("(?:", "(").count, "*+?(")) > _MAX_CHOICES:
        raise ValueError(f"more than {_MAX_CHOICES} of *, +, ? and (a|b)")
    return re.compile(rf"(.*\.)?({key})$")


def read_config(folder: Path, name: str, max_rank: int) -> PeftConfig:
    """Raises InvalidInputError naming the adapter and the setting that cannot be served."""
    path = folder / FILE_NAME
    fields = _read_object(path, name)

    def refuse(problem: str) -> InvalidInputError:
        return InvalidInputError(f"adapter {name!r}: {problem} ({path})")

    if fields.get("peft_type") != "LORA":
        raise refuse(f"peft_type is {fields.get('peft_type')!r}; only LORA is supported")
    for key, value in fields.items():
        if value and key not in _READ | _WITHOUT_EFFECT:
            raise refuse(_REFUSED.get(key, f"the setting {key}={value!r} is not supported"))
    if fields.get("bias", "none") != "none":
        raise refuse(f"trained biases (bias={fields['bias']!r}) are not supported; train it with bias='none'")
    if (init := fields.get("init_lora_weights")) not in _INITS_THAT_KEEP_THE_BASE:
        raise refuse(f"init_lora_weights={init!r} changes the base's weights; save it converted to plain LoRA")

    def check_rank(key: str, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= max_rank:
            raise refuse(f"{key} is {value!r}; a rank must be an integer from 1 to {max_rank}")
        return value

    def check_alpha(key: str, value: Any) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e9:
            raise refuse(f"{key} is {value!r}; it must be a finite number")
        return float(value)

    def check_pattern(key: str, check: Any) -> dict[re.Pattern[str], Any]:
        pattern = fields.get(key) or {}
        if not isinstance(pattern, dict):
            raise refuse(f"{key} is {pattern!r}; it must be an object of module names")
        if len(pattern) > _MAX_KEYS:
            raise refuse(f"{key} names {len(pattern)} modules; at most {_MAX_KEYS} are supported")
        return {compiled(key, module): check(f"{key}[{module!r}]", value) for module, value in pattern.items()}

    def compiled(key: str, module: str) -> re.Pattern[str]:
        try:
            return _compile_key(module)
        except (ValueError, re.error) as error:
            raise refuse(f"{key} has the name {module!r}, which is not supported: {error}") from None

    return PeftConfig(
        rank=check_rank("r", fields.get("r")),
        alpha=check_alpha("lora_alpha", fields.get("lora_alpha")),
        rank_pattern=check_pattern("rank_pattern", check_rank),
        alpha_pattern=check_pattern("alpha_pattern", check_alpha),
        use_rslora=bool(fields.get("use_rslora")),
        targets=_plain_targets(fields),
    )


def _read_object(path: Path, name: str) -> dict[str, Any]:
    try:
        fields = json.loads(read_small_file(path))
    except FileNotFoundError:
        raise InvalidInputError(f"adapter {name!r}: {path} does not exist; give a folder that PEFT saved") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"adapter {name!r}: {path} cannot be read: {error}") from None
    if not isinstance(fields, dict):
        raise InvalidInputError(f"adapter {name!r}: {path} holds {type(fields).__name__}, not an object")
    return fields


def _plain_targets(fields: dict[str, Any]) -> frozenset[str]:
    targets = fields.get("target_modules")
    picks = any(fields.get(key) is not None for key in ("layers_to_transform", "layers_pattern", "exclude_modules"))
    if picks or not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        return frozenset()
    return frozenset(target for target in targets if re.fullmatch(r"\w+", target))
