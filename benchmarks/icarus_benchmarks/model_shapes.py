"""Shapes of real models, for figures that need no trained weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

_DEVIATION = 0.02


@dataclass(frozen=True)
class ModelShape:
    """A Llama's."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    tied: bool

    @property
    def config(self) -> dict[str, Any]:
        """As config.json has it."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.context_length,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "tie_word_embeddings": self.tied,
            "attention_bias": False,
            "mlp_bias": False,
            "eos_token_id": 2,
        }


SHAPES = {
    "llama-3.1-8b": ModelShape(4096, 14336, 32, 32, 8, 128, 128_256, 131_072, tied=False),
    "smollm2-135m": ModelShape(576, 1536, 30, 9, 3, 64, 49_152, 8192, tied=True),
}


def write_random_model(folder: Path, shape: ModelShape) -> Path:
    """A model folder of random bfloat16 weights, a file a layer, and a tokenizer of single bytes. Returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape.config, indent=2) + "\n")
    _byte_tokenizer(shape.vocab_size).save(str(folder / "tokenizer.json"))
    embedding = (shape.vocab_size, shape.hidden_size)
    rest = {"model.embed_tokens.weight": _random(*embedding), "model.norm.weight": _ones(shape.hidden_size)}
    if not shape.tied:
        rest["lm_head.weight"] = _random(*embedding)
    names = [f"model-{index:05}-of-{shape.num_layers + 1:05}.safetensors" for index in range(shape.num_layers + 1)]
    weight_map: dict[str, str] = {}
    for index, name in enumerate(names):
        tensors = rest if index == 0 else _layer(shape, index - 1)
        save_file(tensors, folder / name)
        weight_map |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}) + "\n")
    return folder


def _layer(shape: ModelShape, index: int) -> dict[str, torch.Tensor]:
    hidden, middle = shape.hidden_size, shape.intermediate_size
    query, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    sizes = {
        "self_attn.q_proj": (query, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, query),
        "mlp.gate_proj": (middle, hidden),
        "mlp.up_proj": (middle, hidden),
        "mlp.down_proj": (hidden, middle),
    }
    prefix = f"model.layers.{index}"
    norms = {f"{prefix}.{name}.weight": _ones(hidden) for name in ("input_layernorm", "post_attention_layernorm")}
    return norms | {f"{prefix}.{name}.weight": _random(*size) for name, size in sizes.items()}


def _byte_tokenizer(vocab_size: int) -> Tokenizer:
    """A token a byte; the other ids stand for their numbers."""
    texts = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(f"<{token_id}>" for token_id in range(256, vocab_size))]
    vocabulary = {text: token_id for token_id, text in enumerate(texts[:vocab_size])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _random(rows: int, columns: int) -> torch.Tensor:
    """Rows are windows of one line of noise: quick to make, at the true cost to compute with."""
    noise = torch.randn(rows + columns, generator=torch.Generator().manual_seed(rows)).mul(_DEVIATION).bfloat16()
    return noise.as_strided((rows, columns), (1, 1)).contiguous()


def _ones(size: int) -> torch.Tensor:
    return torch.ones(size, dtype=torch.bfloat16)
