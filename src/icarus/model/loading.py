"""From a model folder to a model. Families differ by their traits alone, so one builder serves them all."""

from collections.abc import Callable
from pathlib import Path

import torch
from icarus_kernels import Columns, compile_cpu_kernels, pack_linear
from torch import Tensor

from icarus.adapters.lora import MODULES
from icarus.config import DEVICES, DTYPES
from icarus.errors import ConfigError
from icarus.model.config import ModelConfig
from icarus.model.device_errors import is_out_of_memory
from icarus.model.layers import Attention, DecoderLayer, GatedMLP, Linear, Norm
from icarus.model.two_stream import TwoStreamModel
from icarus.model.weights import StoredTensors, is_never_read

Progress = Callable[[int, int], None]
"""Called with (tensors loaded, tensors in all)."""


def load_model(
    folder: str | Path, dtype: str = "bfloat16", device: str = "cpu", progress: Progress | None = None
) -> TwoStreamModel:
    """Loads a model folder. `progress` gets (tensors loaded, tensors in all).

    It takes the memory of the weights and of about one layer. On the CPU what is stored in `dtype` and not laid out
    anew (the embedding above all) stays mapped: the processes of a machine share it. Raises ConfigError where the
    folder, the architecture, the dtype or the device does not work, or has no room.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is not supported; supported are {', '.join(DTYPES)}")
    if device not in DEVICES:
        raise ConfigError(
            f"device {device!r} is not supported; supported are {', '.join(DEVICES)} (the first GPU that "
            "CUDA_VISIBLE_DEVICES names)"
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"[model] device {device!r} is not there: torch {torch.__version__} sees no CUDA device")
    config, torch_dtype = ModelConfig.from_folder(folder), getattr(torch, dtype)
    if device == "cpu":
        compile_cpu_kernels(torch_dtype)
    checked = _Checked(StoredTensors(Path(folder), torch_dtype, device), folder, config.tied, progress)
    try:
        model = _build(config, checked)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise ConfigError(
            f"model {folder} in {dtype} does not fit on device {device!r}: stop what else fills it, or take a smaller "
            "model or a larger device"
        ) from error
    checked.require_all_read()
    return model


class _Checked:
    """Tensors by name, with a message for the missing, the misshapen and those that nothing reads. Keeps none."""

    def __init__(self, stored: StoredTensors, folder: str | Path, tied: bool, progress: Progress | None):
        self._stored = stored
        self._folder = folder
        self._progress = progress
        self._wanted = {name for name in stored.names if not is_never_read(name, tied)}
        self._read: set[str] = set()

    def get(self, name: str, *shape: int) -> Tensor:
        if name not in self._stored.names:
            raise ConfigError(f"model {self._folder} lacks tensor {name}")
        tensor = self._stored.read(name)
        if tuple(tensor.shape) != shape:
            raise ConfigError(
                f"model {self._folder}: tensor {name} is {list(tensor.shape)}, config.json makes it {list(shape)}"
            )
        self._read.add(name)
        if self._progress:
            self._progress(len(self._read), len(self._wanted))
        return tensor

    def require_all_read(self) -> None:
        """A tensor more than the architecture has (a scale, a bias, a layer) makes it another model."""
        if unread := sorted(self._wanted - self._read):
            raise ConfigError(
                f"model {self._folder} has {len(unread)} tensors that the model of its config.json does not read, "
                f"{unread[0]} for one; it is quantized, or config.json is not its own"
            )


def _build(config: ModelConfig, tensors: _Checked) -> TwoStreamModel:
    embedding = tensors.get("model.embed_tokens.weight", config.vocab_size, config.hidden_size)
    lm_head = embedding if config.tied else tensors.get("lm_head.weight", config.vocab_size, config.hidden_size)
    return TwoStreamModel(
        config,
        embedding,
        [_build_layer(config, tensors, index) for index in range(config.num_layers)],
        Norm(tensors.get("model.norm.weight", config.hidden_size), config.rms_norm_eps),
        pack_linear(lm_head),
    )


def _build_linear(config: ModelConfig, tensors: _Checked, index: int, part: str, *modules: str) -> Linear:
    """One linear of all `modules`; a bias that one of them lacks is zero."""
    weights, biases, columns, end = [], [], [], 0
    for module in modules:
        name, (out, in_) = f"model.layers.{index}.{part}.{module}", config.linear_shapes[module]
        weights.append(tensors.get(f"{name}.weight", out, in_))
        has_bias = module in config.traits.biased
        biases.append(tensors.get(f"{name}.bias", out) if has_bias else weights[-1].new_zeros(out))
        columns.append(Columns(MODULES.index(module), end, end + out))
        end += out
    is_biased = not config.traits.biased.isdisjoint(modules)
    return Linear(index, tuple(columns), pack_linear(_joined(weights), _joined(biases) if is_biased else None))


def _joined(tensors: list[Tensor]) -> Tensor:
    """One of them alone stays as it is: torch.cat would copy it."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _build_layer(config: ModelConfig, tensors: _Checked, index: int) -> DecoderLayer:
    prefix = f"model.layers.{index}"

    def projection(part: str, *modules: str) -> Linear:
        return _build_linear(config, tensors, index, part, *modules)

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
