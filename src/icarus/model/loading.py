"""From a model folder to a model. Families differ by their traits alone, so one builder serves them all."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import torch
from icarus_kernels import Columns
from torch import Tensor

from icarus.adapters.lora import MODULES
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

    def projection(part: str, *modules: str) -> Linear:
        """One linear of all `modules`."""
        shapes = [config.linear_shapes[module] for module in modules]
        names = [f"{prefix}.{part}.{module}" for module in modules]
        ends = list(accumulate(out for out, _ in shapes))
        columns = tuple(
            Columns(MODULES.index(module), end - out, end)
            for module, (out, _), end in zip(modules, shapes, ends, strict=True)
        )
        weights = [tensors.get(f"{name}.weight", *shape) for name, shape in zip(names, shapes, strict=True)]
        biases = [
            tensors.get(f"{name}.bias", out) if module in config.traits.biased else weight.new_zeros(out)
            for name, module, weight, (out, _) in zip(names, modules, weights, shapes, strict=True)
        ]
        biased = not config.traits.biased.isdisjoint(modules)
        return Linear(index, columns, _cat(weights), _cat(biases) if biased else None)

    def norm(name: str, size: int) -> Norm:
        return Norm(tensors.get(f"{prefix}.{name}.weight", size), config.rms_norm_eps)

    def head_norm(name: str) -> Norm | None:
        return norm(f"self_attn.{name}", config.head_dim) if config.traits.qk_norm else None

    return DecoderLayer(
        input_norm=norm("input_layernorm", config.hidden_size),
        attention=Attention(
            qkv_proj=projection("self_attn", "q_proj", "k_proj", "v_proj"),
            o_proj=projection("self_attn", "o_proj"),
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            q_norm=head_norm("q_norm"),
            k_norm=head_norm("k_norm"),
            window=config.windows[index],
        ),
        mlp_norm=norm("post_attention_layernorm", config.hidden_size),
        mlp=GatedMLP(projection("mlp", "gate_proj", "up_proj"), projection("mlp", "down_proj")),
    )


def _cat(tensors: Sequence[Tensor]) -> Tensor:
    """A single tensor stays as it is: mapped."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
