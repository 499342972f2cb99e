"""The processes and devices of a run: accelerate's business, and nothing else is left to it."""

from accelerate import Accelerator
from accelerate.utils import DistributedType

from icarus.errors import ConfigError

_KINDS = {DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU}


def join_processes() -> Accelerator:
    """This process's part in the run, as `accelerate launch` describes it.

    Raises ConfigError where the launcher, or the user's default configuration of it, decides what the settings do.
    """
    accelerator = Accelerator()
    if (precision := accelerator.mixed_precision) != "no":
        raise _refused("mixed precision", precision, "--mixed_precision no; --dtype says what is computed in")
    if (passes := accelerator.gradient_accumulation_steps) != 1:
        raise _refused("gradient accumulation", passes, "--gradient_accumulation_steps 1; --accumulation says how many")
    if (kind := accelerator.distributed_type) not in _KINDS:
        raise _refused("distributed type", kind.value, "--multi_gpu: each process holds the whole model")
    return accelerator


def _refused(what: str, value: object, instead: str) -> ConfigError:
    return ConfigError(f"accelerate's {what} is {value}, which is not supported: give accelerate launch {instead}")
