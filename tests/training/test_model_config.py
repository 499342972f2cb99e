"""What training asks of a model's configuration."""

from types import SimpleNamespace

import pytest

from icarus.errors import ConfigError
from icarus.training.model_config import check_window, read_model_config


def test_texts_beyond_a_window_are_refused():
    config = SimpleNamespace(sliding_window=8, use_sliding_window=True)
    check_window(config, 8)
    with pytest.raises(ConfigError, match=r"attends to 8 tokens at most, and texts may have 9.*--max-length 8"):
        check_window(config, 9)
    check_window(SimpleNamespace(sliding_window=8, use_sliding_window=False), 9)
    check_window(SimpleNamespace(sliding_window=None), 9)


@pytest.mark.parametrize("text", [None, "{", '{"model_type": "nobody-knows-it"}'])
def test_a_configuration_that_cannot_be_read_is_named(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=f"model {tmp_path} has no configuration that can be read"):
        read_model_config(tmp_path)
