"""What is read from config.json, and what is refused by name."""

import json

import pytest
import tiny

from icarus.errors import ConfigError
from icarus.model.config import ModelConfig

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


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
    assert config.linear_shapes["k_proj"] == (32, 96) and config.linear_shapes["down_proj"] == (96, 144)


def test_defaults_of_older_files(folder, tmp_path):
    raw = {"rope_parameters": ..., "rope_theta": 5e5, "head_dim": ..., "num_key_value_heads": ...}
    config = ModelConfig.from_folder(changed(folder, tmp_path, **raw))
    assert (config.rope.theta, config.head_dim, config.num_kv_heads) == (5e5, 16, 6)
    assert config.rope.canonical() != ModelConfig.from_folder(folder).rope.canonical()


QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "sliding_window": 6}
MISTRAL = {"architectures": ["MistralForCausalLM"]}


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"sliding_window": 6}, (None, None, None)),  # Llama has no such thing
        (MISTRAL | {"sliding_window": 6}, (6, 6, 6)),
        (MISTRAL | {"sliding_window": None}, (None, None, None)),
        (MISTRAL, (4096, 4096, 4096)),
        (QWEN2 | {"max_window_layers": 1}, (None, 6, 6)),
        (QWEN2, (None, None, None)),  # of 28 layers on
        (QWEN2 | {"max_window_layers": 0, "use_sliding_window": False}, (None, None, None)),
        (QWEN2 | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}, (6, None, 6)),
    ],
)
def test_windows(folder, tmp_path, changes, windows):
    assert ModelConfig.from_folder(changed(folder, tmp_path, **{"num_key_value_heads": 2} | changes)).windows == windows


COMMON = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "vocab_size": 1000, "intermediate_size": 512}
PUBLISHED = {
    "llama 3.2": {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 2048,
        "head_dim": 64,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_hidden_layers": 16,
        "max_position_embeddings": 131072,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
    },
    "qwen 2.5": {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": 896,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "num_hidden_layers": 24,
        "max_position_embeddings": 32768,
        "max_window_layers": 21,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "use_sliding_window": False,
    },
    "qwen 3": {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "head_dim": 128,
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "num_hidden_layers": 28,
        "max_position_embeddings": 40960,
        "max_window_layers": 28,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "use_sliding_window": False,
    },
    "mistral 0.1": {
        "architectures": ["MistralForCausalLM"],
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_hidden_layers": 32,
        "max_position_embeddings": 32768,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
    },
}


@pytest.mark.parametrize(
    ("name", "head_dim", "window", "biased", "rope"),
    [
        ("llama 3.2", 64, None, 0, "llama3 factor=32.0 low=1.0 high=4.0 original=8192 theta=500000.0 dim=64"),
        ("qwen 2.5", 64, None, 3, "default theta=1000000.0 dim=64"),
        ("qwen 3", 128, None, 0, "default theta=1000000.0 dim=128"),
        ("mistral 0.1", 128, 4096, 0, "default theta=10000.0 dim=128"),
    ],
)
def test_files_as_they_are_published(tmp_path, name, head_dim, window, biased, rope):
    """In the form of transformers 4: without `rope_parameters` and `layer_types`."""
    (tmp_path / "config.json").write_text(json.dumps(COMMON | PUBLISHED[name]))
    config = ModelConfig.from_folder(tmp_path)
    assert (config.head_dim, set(config.windows), len(config.traits.biased)) == (head_dim, {window}, biased)
    assert config.rope.canonical() == rope and config.traits.qk_norm == (name == "qwen 3")


def test_defaults_of_the_family(folder, tmp_path):
    raw = {"architectures": ["Qwen3ForCausalLM"], "head_dim": ..., "num_attention_heads": 32}
    config = ModelConfig.from_folder(changed(folder, tmp_path, **raw, num_key_value_heads=...))
    assert (config.head_dim, config.num_kv_heads, config.linear_shapes["q_proj"]) == (128, 32, (4096, 96))


@pytest.mark.parametrize(
    "change",
    [
        {"rms_norm_eps": 1e-5},
        {"attention_bias": True},
        {"architectures": ["Qwen3ForCausalLM"]},
        MISTRAL | {"sliding_window": 6},
        MISTRAL | {"sliding_window": 7},
        {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 48},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0}},
        *({"rope_parameters": LLAMA3 | {key: 3}} for key in LLAMA3 if key != "rope_type"),
    ],
)
def test_what_changes_kv_changes_the_canonical_text(folder, tmp_path, change):
    """Blocks of two models of the same weights are exchanged only where the KV is the same."""
    others = [{}, {"rope_parameters": LLAMA3}, MISTRAL]
    texts = {ModelConfig.from_folder(changed(folder, tmp_path, **other)).canonical() for other in [*others, change]}
    assert len(texts) == 4


def test_what_leaves_kv_alone_leaves_the_canonical_text(folder, tmp_path):
    text = ModelConfig.from_folder(folder).canonical()
    other = changed(folder, tmp_path, max_position_embeddings=64, eos_token_id=7, tie_word_embeddings=False)
    assert ModelConfig.from_folder(other).canonical() == text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"]},
            "architecture GPT2LMHeadModel is not supported; supported are LlamaForCausalLM, MistralForCausalLM, "
            "Qwen2ForCausalLM, Qwen3ForCausalLM",
        ),
        ({"architectures": None}, "architecture none is not supported"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "'yarn' is not supported; supported are default, "),
        ({"rope_parameters": ..., "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "RoPE type 'dynamic'"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_parameters: factor is None"),
        ({"rope_parameters": LLAMA3 | {"low_freq_factor": 4.0}}, "high_freq_factor 4.0 is not above low_freq_factor"),
        ({"rope_parameters": LLAMA3 | {"original_max_position_embeddings": None}}, "original_max_position_embeddings"),
        ({"rope_parameters": {"full_attention": {}, "sliding_attention": {}}}, "full_attention, sliding_attention"),
        ({"rope_parameters": "llama3"}, "rope_parameters is 'llama3'; it must be an object"),
        ({"head_dim": 15}, "head_dim 15 is odd"),
        ({"attention_bias": "yes"}, "attention_bias is 'yes'; it must be true or false"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0; it must be a positive number"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized"),
        ({"hidden_size": ...}, "hidden_size is None"),
        (MISTRAL | {"layer_types": ["full_attention"] * 3}, "layer_types is not supported for MistralForCausalLM"),
        (MISTRAL | {"sliding_window": 0}, "sliding_window is 0"),
        (QWEN2 | {"layer_types": ["full_attention"]}, "layer_types names 1 layers and num_hidden_layers is 3"),
        (QWEN2 | {"layer_types": ["linear_attention"] * 3}, "linear_attention is not supported; supported are full_at"),
        (QWEN2 | {"layer_types": ["sliding_attention"] * 3, "sliding_window": None}, "give no window"),
        ({"architectures": "LlamaForCausalLM"}, "architectures is 'LlamaForCausalLM'; it must be a list of names"),
        ({"architectures": [5]}, r"architectures is \[5\]; it must be a list of names"),
        (QWEN2 | {"layer_types": 5}, "layer_types is 5; it must be a list of names"),
        (QWEN2 | {"layer_types": [[]] * 3}, "layer_types is .*; it must be a list of names"),
        (QWEN2 | {"max_window_layers": "1"}, "max_window_layers is '1'; it must be an integer"),
        ({"rope_parameters": ..., "rope_theta": float("inf")}, "rope_theta is inf; it must be a positive number"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps is inf; it must be a positive number"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps is 10+; it must be a positive number"),
        (
            {"rope_parameters": LLAMA3, "rope_scaling": {"type": "linear", "factor": 2.0}},
            r"rope_parameters \(llama3 factor=8.* and rope_scaling \(linear factor=2.0 theta=10000.0 .*\) differ",
        ),
        ({"rope_parameters": LLAMA3, "rope_scaling": LLAMA3 | {"rope_theta": 5e5}}, "differ; keep the one"),
        ({"rope_parameters": LLAMA3, "rope_scaling": {"type": "dynamic"}}, "RoPE type 'dynamic'"),
        ({"num_key_value_heads": 4}, "num_attention_heads 6 is not a multiple of num_key_value_heads 4"),
    ],
)
def test_refuses_by_name(folder, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_folder(changed(folder, tmp_path, **changes))


def test_one_rope_in_both_forms(folder, tmp_path):
    """As a file for both versions of transformers has it."""
    old = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
    new = {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}}
    expected = ModelConfig.from_folder(changed(folder, tmp_path, **new)).rope
    for theta in (..., 5e5):
        config = ModelConfig.from_folder(changed(folder, tmp_path, **new, rope_scaling=old, rope_theta=theta))
        assert config.rope == expected


def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ConfigError, match=r"config\.json cannot be read: Is a directory"):
        ModelConfig.from_folder(tmp_path)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "config.json").write_text("[" * 200_000)
    with pytest.raises(ConfigError, match=r"config\.json is not valid JSON"):
        ModelConfig.from_folder(tmp_path / "deep")


def test_no_folder(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json does not exist"):
        ModelConfig.from_folder(tmp_path / "none")
