"""GGUF files: what transformers would make up or pass over is refused by name."""

import pytest
import tiny
import torch
from safetensors.torch import load_file

from icarus.errors import ConfigError
from icarus.model import hub
from icarus.model.config import ModelConfig

gguf = pytest.importorskip("gguf")
LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OTHER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}


def gguf_name(name):
    stem = name.removesuffix(".weight")
    if stem in OTHER:
        return f"{OTHER[stem]}.weight"
    _, _, layer, module = stem.split(".", 3)
    return f"blk.{layer}.{LAYER[module]}.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.tiny_llama(tmp_path_factory.mktemp("model"), layers=1)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(file, folder, drop=(), tensors=None, **strings):
    """A GGUF file of a tiny Llama, by llama.cpp's names. `strings`: metadata of the architecture more."""
    config = ModelConfig.from_folder(folder)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    for key, value in strings.items():
        (writer.add_string if isinstance(value, str) else writer.add_uint16)(key.replace("__", "."), value)
    tokens = [*tiny.SPECIAL_TOKENS, "ab", *map(chr, range(97, 97 + config.vocab_size - 4))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(tiny.EOS)
    stored = {gguf_name(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    for name, tensor in {**stored, **(tensors or {})}.items():
        if name not in drop:
            writer.add_tensor(name, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(file)


def test_a_whole_file(tmp_path, model):
    folder = hub.resolve_model(write(tmp_path / "Llama-3.2.Q4.gguf", model, llama__rope__scaling__type="none"))
    assert folder.name == "Llama-3.2.Q4"
    stored, made = load_file(model / "model.safetensors"), load_file(folder / "model.safetensors")
    assert made.keys() == stored.keys()
    assert torch.equal(
        made["model.layers.0.mlp.up_proj.weight"], stored["model.layers.0.mlp.up_proj.weight"].bfloat16()
    )
    assert ModelConfig.from_folder(folder).linear_shapes == ModelConfig.from_folder(model).linear_shapes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drop": ["blk.0.ffn_up.weight"]}, r"lacks 1 weights of its model, model\.layers\.0\.mlp\.up_proj\.weight"),
        ({"tensors": {"blk.0.attn_q.bias": torch.ones(64)}}, "has 12 tensors, and the model .* of them 11"),
        ({"tensors": {"rope_freqs.weight": torch.ones(8)}}, r"scales RoPE \(rope_freqs\.weight\)"),
        ({"llama__rope__scaling__type": "yarn"}, r"scales RoPE \(llama\.rope\.scaling\.type\)"),
        ({"split__count": 3}, "is one of 3 files of a model; merge them"),
    ],
)
def test_what_would_not_be_the_files_model_is_refused(tmp_path, model, changes, message):
    file = write(tmp_path / "odd.gguf", model, **changes)
    with pytest.raises(ConfigError, match=rf"odd\.gguf {message}"):
        hub.resolve_model(file)
    assert not list((tmp_path / "cache").rglob("odd"))
