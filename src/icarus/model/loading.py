"""From a model folder to a model. Families differ by their traits alone, so one builder serves them all."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from icarus.errors import ConfigError
from icarus.model.config import ModelConfig
from icarus.model.layers import Attention, DecoderLayer, GatedMLP, Linear, Norm
from icarus.model.two_stream import TwoStreamModel
from icarus.model.weights import Progress, load_tensors

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def load_model(
    folder: str | Path, dtype: str = "bfloat16", device: str = "cpu", progress: Progress | None = None
) -> TwoStreamModel:
    """Loads a model folder. `progress` gets (tensors loaded, tensors in all).

    Weights stored in `dtype` stay mapped on the CPU: the processes of a machine share them. Raises ConfigError where
    the folder, the architecture, the dtype or the device does not work.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is not supported; supported are {', '.join(DTYPES)}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r} is not there: torch {torch.__version__} sees no CUDA device")
    config = ModelConfig.from_folder(folder)
    tensors = load_tensors(Path(folder), DTYPES[dtype], device, progress)
    return _build(config, _Checked(tensors, folder))


class _Checked:
    """Tensors by name, with a message for the missing and the misshapen."""

    def __init__(self, tensors: Mapping[str, Tensor], folder: str | Path):
        self._tensors = tensors
        self._folder = folder

    def get(self, name: str, *shape: int) -> Tensor:
        if name not in self._tensors:
            raise ConfigError(f"model {self._folder} lacks tensor {name}")
        tensor = self._tensors[name]
        if tuple(tensor.shape) != shape:
            raise ConfigError(
                f"model {self._folder}: tensor {name} is {list(tensor.shape)}, config.json makes it {list(shape)}"
            )
        return tensor


def _build(config: ModelConfig, tensors: _Checked) -> TwoStreamModel:
    embedding = tensors.get("model.embed_tokens.weight", config.vocab_size, config.hidden_size)
    return TwoStreamModel(
        config,
        embedding,
        [_build_layer(config, tensors, index) for index in range(config.num_layers)],
        Norm(tensors.get("model.norm.weight", config.hidden_size), config.rms_norm_eps),
        embedding if config.tied else tensors.get("lm_head.weight", config.vocab_size, config.hidden_size),
    )


def _build_layer(config: ModelConfig, tensors: _Checked, index: int) -> DecoderLayer:
    prefix = f"model.layers.{index}"

    def projection(part: str, module: str) -> Linear:
        out, in_ = config.linear_shapes[module]
        name = f"{prefix}.{part}.{module}"
        bias = tensors.get(f"{name}.bias", out) if module in config.traits.biased else None
        return Linear(index, module, tensors.get(f"{name}.weight", out, in_), bias)

    def norm(name: str, size: int) -> Norm:
        return Norm(tensors.get(f"{prefix}.{name}.weight", size), config.rms_norm_eps)

    def head_norm(name: str) -> Norm | None:
        return norm(f"self_attn.{name}", config.head_dim) if config.traits.qk_norm else None

    return DecoderLayer(
        input_norm=norm("input_layernorm", config.hidden_size),
        attention=Attention(
            *(projection("self_attn", module) for module in ("q_proj", "k_proj", "v_proj", "o_proj")),
            head_dim=config.head_dim,
            q_norm=head_norm("q_norm"),
            k_norm=head_norm("k_norm"),
            window=config.windows[index],
        ),
        mlp_norm=norm("post_attention_layernorm", config.hidden_size),
        mlp=GatedMLP(*(projection("mlp", module) for module in ("gate_proj", "up_proj", "down_proj"))),
    )
