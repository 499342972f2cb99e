"""Settings: one file, the same names as flags, and errors that name the key and the value."""

import pytest

from icarus.config import Config, ModelSection, load_config
from icarus.errors import ConfigError


def test_defaults_then_file_then_overrides(tmp_path):
    file = tmp_path / "icarus.toml"
    file.write_text('[cache]\nnum_blocks = 7\nblock_size = 32\n[worker]\ngateways = ["a:1", "b:2"]\n')
    config = load_config(file, {"cache": {"num_blocks": 9}})
    assert (config.cache.num_blocks, config.cache.block_size) == (9, 32)
    assert config.worker.gateways == ("a:1", "b:2")
    assert config.engine == Config().engine


def test_a_whole_number_passes_for_a_float(tmp_path):
    file = tmp_path / "icarus.toml"
    file.write_text("[transfer]\nlease_seconds = 3\n")
    assert load_config(file).transfer.lease_seconds == 3.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[cach]\n", r"unknown section \[cach\]"),
        ("[cache]\nblocks = 3\n", r"\[cache\] has no setting 'blocks'; it has num_blocks"),
        ('[cache]\nnum_blocks = "3"\n', r"\[cache\] num_blocks takes int, not '3'"),
        ("[cache]\nnum_blocks = true\n", r"num_blocks takes int, not True"),
        ('[worker]\ngateways = "a:1"\n', r"\[worker\] gateways takes a list of strings, not 'a:1'"),
        ("[engine]\nmax_batch_tokens = 1\n", r"\[engine\] max_batch_tokens is 1; it must be 2 or more"),
        (
            "[engine]\nmax_batch_tokens = 63\n",
            r"\[engine\] max_batch_tokens is 63; with max_running 32 it must be 64 or more",
        ),
        ("[engine]\nmax_running = 257\n", r"max_batch_tokens is 512; with max_running 257 it must be 514 or more"),
        ("[gateway]\nheartbeat_seconds = nan\n", r"\[gateway\] heartbeat_seconds is nan; it must be 0.01 or more"),
        ("[cache\n", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path, text, message):
    file = tmp_path / "icarus.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(file)


def test_a_missing_file_is_refused():
    with pytest.raises(ConfigError, match=r"nowhere\.toml does not exist"):
        load_config("nowhere.toml")


def test_a_folder_in_its_place_is_refused(tmp_path):
    """Docker makes one where it mounts a file that does not exist."""
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("name", "path", "expected"),
    [
        ("", "smollm2", "smollm2"),
        ("", "org/Some-Model", "Some-Model"),
        ("", "folder/model/", "model"),
        ("", "x/model.Q4_1.gguf", "model.Q4_1"),
        ("mine", "org/Some-Model", "mine"),
    ],
)
def test_the_served_name_is_given_or_the_paths_last_part(name, path, expected):
    assert ModelSection(name=name, path=path).served_name == expected
