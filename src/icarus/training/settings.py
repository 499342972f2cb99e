"""What `icarus train` is told. The flag of `batch_size` is `--batch-size`; free of torch."""

import math
from dataclasses import dataclass, field
from typing import Any

from icarus.adapters.peft_config import DEFAULT_MAX_RANK
from icarus.errors import InvalidInputError
from icarus.training.schedule import SCHEDULES
from icarus.types import AdapterMode

MODES = {"icarus": AdapterMode.SHARED, "conventional": AdapterMode.PRIVATE}
"""What the two ways of training make."""
DEFAULT_TARGETS = {
    AdapterMode.SHARED: ("q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    AdapterMode.PRIVATE: ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}
DTYPES = ("bfloat16", "float32")
_WRITES_KV = {"k_proj", "v_proj", "c_attn", "qkv_proj", "query_key_value", "Wqkv", "W_pack", "kv_proj", "kv_b_proj"}
_NOT_SERVED = {"embed_tokens", "lm_head", "wte"}


def _setting(default: Any, help: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": help, **metadata})


@dataclass(frozen=True)
class TrainSettings:
    """One run. Two runs with equal settings and data give equal curves. Building it raises InvalidInputError."""

    model: str = _setting("smollm2", "a Hugging Face folder or hub id, a .gguf file, or 'smollm2'")
    data_note: str = _setting("", "what the model card says of the data: its name, its source, its licence")
    data: str = _setting("", "JSONL with one example a line: messages, or prompt and completion")
    validation: str = _setting("", "JSONL of examples whose loss is measured at each checkpoint; not trained on")
    mode: str = _setting(
        "icarus", "icarus: read the frozen base's KV; conventional: write KV of its own", choices=[*MODES]
    )
    rank: int = _setting(8, f"LoRA rank, up to {DEFAULT_MAX_RANK}")
    alpha: float = _setting(0.0, "LoRA alpha; 0 takes twice the rank")
    dropout: float = _setting(0.0, "dropout in front of the LoRA weights")
    targets: tuple[str, ...] = _setting((), "a projection to adapt; none: q, o, gate, up, down, conventional also k, v")
    learning_rate: float = _setting(1e-3, "the highest rate")
    warmup: float = _setting(0.03, "share of the steps in which the rate rises to that")
    schedule: str = _setting("cosine", "how the rate falls to 0 after that, or does not", choices=[*SCHEDULES])
    weight_decay: float = _setting(0.01, "AdamW's weight decay")
    max_grad_norm: float = _setting(1.0, "gradients are scaled down to this norm")
    batch_size: int = _setting(8, "examples in one pass of one process")
    accumulation: int = _setting(4, "passes before the weights change")
    max_length: int = _setting(1024, "longest example in tokens; the model's context if that is shorter")
    truncate: bool = _setting(False, "cut the beginning of longer prompts; without it such examples are left out")
    epochs: float = _setting(1.0, "how often each example is seen")
    steps: int = _setting(0, "steps in place of epochs")
    seed: int = _setting(0, "decides the first weights, the order of the data and the dropout")
    dtype: str = _setting(
        "bfloat16", "the base's precision; LoRA weights are float32 while they are trained", choices=DTYPES
    )
    gradient_checkpointing: bool = _setting(False, "compute the layers again in the backward pass: less memory, slower")
    save_every: int = _setting(100, "steps between checkpoints")

    def __post_init__(self) -> None:
        _check_choice("mode", self.mode, [*MODES])
        _check_choice("dtype", self.dtype, DTYPES)
        _check_choice("schedule", self.schedule, SCHEDULES)
        for name in ("rank", "batch_size", "accumulation", "max_length", "save_every"):
            if getattr(self, name) < 1:
                raise _out_of_range(name, getattr(self, name), "at least 1")
        if self.rank > DEFAULT_MAX_RANK:
            raise _out_of_range("rank", self.rank, f"at most {DEFAULT_MAX_RANK}, the highest that is served")
        for name in ("learning_rate", "epochs", "max_grad_norm"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise _out_of_range(name, getattr(self, name), "above 0")
        for name in ("alpha", "weight_decay", "steps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise _out_of_range(name, getattr(self, name), "at least 0")
        if not 0 <= self.seed < 1 << 32:
            raise _out_of_range("seed", self.seed, "from 0 to 4294967295")
        for name in ("warmup", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise _out_of_range(name, getattr(self, name), "in [0, 1)")
        try:
            self.data_note.encode()
        except UnicodeEncodeError as error:
            raise InvalidInputError(f"--data-note is not UTF-8 at character {error.start + 1}; the card is") from None
        check_targets(self.adapter_mode, self.target_modules)

    @property
    def adapter_mode(self) -> AdapterMode:
        return MODES[self.mode]

    @property
    def target_modules(self) -> tuple[str, ...]:
        return self.targets or DEFAULT_TARGETS[self.adapter_mode]

    @property
    def lora_alpha(self) -> float:
        return self.alpha or 2.0 * self.rank


def check_targets(mode: AdapterMode, targets: tuple[str, ...]) -> None:
    """Raises InvalidInputError for a projection that a specialist of this mode cannot adapt."""
    if refused := sorted(_NOT_SERVED.intersection(targets)):
        raise InvalidInputError(
            f"target {refused[0]} cannot be served: LoRA on embeddings and lm_head is not supported"
        )
    if mode is AdapterMode.SHARED and (refused := sorted(_WRITES_KV.intersection(targets))):
        raise InvalidInputError(
            f"target {refused[0]} would change the KV cache, which every specialist shares and only the frozen base "
            "writes; leave it out, or train with --mode conventional, which keeps a cache of its own"
        )


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in choices:
        raise InvalidInputError(f"{_flag(name)} is one of {', '.join(choices)}, not {value!r}")


def _out_of_range(name: str, value: Any, range_text: str) -> InvalidInputError:
    return InvalidInputError(f"{_flag(name)} is {value}; it must be {range_text}")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
