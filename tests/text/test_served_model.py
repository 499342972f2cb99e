import json

import pytest
from icarus_gateway.sessions.prompt import stateless_prompt

from icarus.errors import ConfigError, FailedPreconditionError
from icarus.text.chat_template import ChatMessage
from icarus.text.content import Messages, Text, Tokens
from icarus.text.model_files import read_json
from icarus.text.served_model import load_served_model

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "vocab_size": 300,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 3,
    "torch_dtype": "float32",
}


@pytest.fixture
def folder(tmp_path, model, templates):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [4, 5]}')
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|im_end|>"}}')
    (tmp_path / "chat_template.jinja").write_text(templates["chatml"])
    model.tokenizer._raw.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_a_folder(folder, model):
    served = load_served_model(folder, "tiny")
    assert (served.name, served.vocab_size, served.context_length) == ("tiny", 300, 64)
    assert served.eos_token_ids == (model.tokenizer.id_of("<|im_end|>"), 4, 5, 3)
    assert served.template is not None and served.template.delta_problem is None
    assert served.tokenizer.encode("abc") == model.tokenizer.encode("abc")


@pytest.mark.parametrize("text", ["{", "[]", '{"eos_token_id": "5"}', '{"eos_token_id": [5, null]}'])
def test_broken_files(folder, text):
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"generation_config\.json"):
        load_served_model(folder, "tiny")


def test_a_file_that_cannot_be_read(folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_text", refuse)
    with pytest.raises(ConfigError, match=r"config\.json cannot be read: Permission denied"):
        load_served_model(folder, "tiny")
    with pytest.raises(ConfigError, match=r"x\.json cannot be read: Permission denied"):
        (folder / "x.json").touch()
        read_json(folder / "x.json")


def test_a_template_that_is_not_valid_costs_messages_only(folder):
    (folder / "chat_template.jinja").write_text("{% for %}")
    served = load_served_model(folder, "tiny")
    assert served.chat is None
    for content in (Text("hi"), Tokens((1, 2))):
        assert stateless_prompt(served, content)
    with pytest.raises(
        FailedPreconditionError, match=r"no chat template: the model's chat template is not valid: .*; send"
    ):
        stateless_prompt(served, Messages((ChatMessage("user", "hi"),)))
