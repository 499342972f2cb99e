"""The two-stream model and the Llama family."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import linear

from icarus.cache.kv import KVPool
from icarus.errors import ConfigError
from icarus.model.batch import StepBatch
from icarus.model.config import ModelConfig
from icarus.model.layers import Attention, DecoderLayer, GatedMLP, Linear, Norm, Rotation
from icarus.model.weights import Progress, load_tensors

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class TwoStreamModel:
    """Runs the encoder (base) and the decoder (base + LoRA) rows of a batch in one pass (DESIGN section 2)."""

    def __init__(
        self, config: ModelConfig, embedding: Tensor, layers: Sequence[DecoderLayer], norm: Norm, lm_head: Tensor
    ):
        self.config = config
        self.kv_rows_written = 0
        """Write rows of every forward so far, counted here and nowhere else."""
        self._embedding = embedding
        self._layers = layers
        self._norm = norm
        self._lm_head = lm_head

    @property
    def dtype(self) -> torch.dtype:
        return self._embedding.dtype

    @property
    def device(self) -> torch.device:
        return self._embedding.device

    @torch.inference_mode()
    def forward(self, batch: StepBatch, kv: KVPool) -> Tensor:
        """Writes the KV of the batch's write rows; returns logits [num_samples, vocab_size], float32."""
        self.kv_rows_written += batch.num_writes
        hidden = self._embedding[batch.token_ids]
        rotation = Rotation.at(batch.positions, self.config.rope, hidden.dtype)
        last = len(self._layers) - 1
        for index, layer in enumerate(self._layers):
            queries = batch.sampled if index == last else batch.every
            hidden = layer(hidden, batch, queries, rotation, kv.layer(index))
        return linear(self._norm(hidden[batch.sample_order]), self._lm_head).float()


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
    return _build_llama(config, _Checked(tensors, folder))


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


def _build_llama(config: ModelConfig, tensors: _Checked) -> TwoStreamModel:
    embedding = tensors.get("model.embed_tokens.weight", config.vocab_size, config.hidden_size)
    return TwoStreamModel(
        config,
        embedding,
        [_llama_layer(config, tensors, index) for index in range(config.num_layers)],
        Norm(tensors.get("model.norm.weight", config.hidden_size), config.rms_norm_eps),
        embedding if config.tied else tensors.get("lm_head.weight", config.vocab_size, config.hidden_size),
    )


def _llama_layer(config: ModelConfig, tensors: _Checked, index: int) -> DecoderLayer:
    prefix = f"model.layers.{index}"

    def projection(part: str, module: str, has_bias: bool) -> Linear:
        out, in_ = config.linear_shapes[module]
        name = f"{prefix}.{part}.{module}"
        bias = tensors.get(f"{name}.bias", out) if has_bias else None
        return Linear(index, module, tensors.get(f"{name}.weight", out, in_), bias)

    def norm(name: str) -> Norm:
        return Norm(tensors.get(f"{prefix}.{name}.weight", config.hidden_size), config.rms_norm_eps)

    return DecoderLayer(
        input_norm=norm("input_layernorm"),
        attention=Attention(
            *(projection("self_attn", m, config.attention_bias) for m in ("q_proj", "k_proj", "v_proj", "o_proj")),
            head_dim=config.head_dim,
        ),
        mlp_norm=norm("post_attention_layernorm"),
        mlp=GatedMLP(*(projection("mlp", m, config.mlp_bias) for m in ("gate_proj", "up_proj", "down_proj"))),
    )
