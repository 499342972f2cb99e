"""How much memory KV takes."""

from icarus.config import Config
from icarus.model.config import ModelConfig

_VALUE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def block_bytes(model: ModelConfig, config: Config) -> int:
    """Of a block of all layers. An unknown dtype is the worker's to refuse."""
    values = 2 * model.num_layers * model.num_kv_heads * model.head_dim * config.cache.block_size
    return values * _VALUE_BYTES.get(config.model.dtype, 2)
