"""What is read from config.json, and what is refused by name."""

import json

import pytest
import tiny

from icarus.errors import ConfigError
from icarus.model.config import ModelConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.tiny_llama(tmp_path_factory.mktemp("model"), heads=6, kv_heads=2)


def changed(folder, tmp_path, **changes):
    raw = json.loads((folder / "config.json").read_text())
    raw.update(changes)
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not ...}))
    return tmp_path


def test_reads_a_folder(folder):
    config = ModelConfig.from_folder(folder)
    assert (config.num_heads, config.num_kv_heads, config.head_dim, config.tied) == (6, 2, 16, True)
    assert config.eos_token_ids == (tiny.EOS,)
    assert config.linear_shapes["k_proj"] == (32, 96) and config.linear_shapes["down_proj"] == (96, 144)


def test_defaults_of_older_files(folder, tmp_path):
    raw = {"rope_parameters": ..., "rope_theta": 5e5, "head_dim": ..., "num_key_value_heads": ...}
    config = ModelConfig.from_folder(changed(folder, tmp_path, **raw))
    assert (config.rope.theta, config.head_dim, config.num_kv_heads) == (5e5, 16, 6)
    assert config.rope.canonical() != ModelConfig.from_folder(folder).rope.canonical()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is not supported; supported are LlamaForCausalLM"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "RoPE type 'llama3'"),
        ({"rope_parameters": ..., "rope_scaling": {"type": "linear", "factor": 2.0}}, "RoPE type 'linear'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized"),
        ({"hidden_size": ...}, "hidden_size is None"),
        ({"num_key_value_heads": 4}, "num_attention_heads 6 is not a multiple of num_key_value_heads 4"),
    ],
)
def test_refuses_by_name(folder, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_folder(changed(folder, tmp_path, **changes))


def test_no_folder(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json does not exist"):
        ModelConfig.from_folder(tmp_path / "none")
