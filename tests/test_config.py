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
        ("[cach]\n", r"icarus\.toml: unknown section \[cach\]"),
        ("num_blocks = 5\n", r"icarus\.toml: 'num_blocks' stands outside of any section; they are model, cache,"),
        ("[cache]\nblocks = 3\n", r"icarus\.toml: \[cache\] has no setting 'blocks'; it has num_blocks"),
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
        ("[transfer]\nmax_leased_fraction = 3\n", r"\[transfer\] max_leased_fraction is 3.0; it must be 1 or less"),
        ("[model]\ndtype = 'fp16'\n", r"\[model\] dtype is 'fp16'; it is one of bfloat16, float16, float32"),
        ("[model]\ndevice = 'gpu'\n", r"\[model\] device is 'gpu'; it is one of cpu, cuda"),
        ("[worker]\nadapters = ['a']\n", r"\[worker\] adapters is 'a'; it is NAME=FOLDER or NAME=FOLDER:private"),
        ("[worker]\nadapters = ['a=']\n", r"\[worker\] adapters is 'a='; it is NAME=FOLDER"),
        ("[worker]\nadapters = ['a=b', 'c=d', 'a=e']\n", r"\[worker\] adapters has .*'a' twice, in 'a=b' and in 'a=e'"),
        ("[[cache]]\nnum_blocks = 5\n", r"\[\[cache\]\] is a list of tables; write \[cache\], once"),
        ("[cache\n", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path, text, message):
    file = tmp_path / "icarus.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(file)


def test_a_message_names_the_file_for_what_the_file_says_alone(tmp_path):
    file = tmp_path / "icarus.toml"
    file.write_text("[cache]\nnum_blocks = 0\n[engine]\nmax_running = 300\n")
    for flags, message in (
        ({}, rf"^{file}: \[cache\] num_blocks is 0"),
        ({"cache": {"num_blocks": -1}}, r"^\[cache\] num_blocks is -1"),
        ({"cache": {"num_blocks": 1}}, rf"^{file}: \[engine\] max_batch_tokens is 512; with max_running 300"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(file, flags)


LISTENING = [("worker", "address"), ("gateway", "address"), ("gateway", "worker_address"), ("metrics", "address")]


@pytest.mark.parametrize(("section", "name"), [*LISTENING, ("worker", "advertise"), ("worker", "gateways")])
def test_an_address_is_host_and_port(section, name):
    for address in ("7080", ":7080", "127.0.0.1", "a:", "a:http", "a:65536", "::1:7080", "http://a:7080", "a b:1"):
        with pytest.raises(ConfigError, match=rf"^\[{section}\] {name} is '{address}'; it is HOST:PORT, such as"):
            load_config(None, {section: {name: [address] if name == "gateways" else address}})
    for address in ("localhost:7080", "0.0.0.0:1", "[::]:7080", "[fe80::1%br-lan]:65535"):
        load_config(None, {section: {name: [address] if name == "gateways" else address}})


def test_port_0_is_listened_on_and_not_called():
    for section, name in LISTENING:
        load_config(None, {section: {name: "[::1]:0"}})
    for values in ({"advertise": "a:0"}, {"gateways": ["a:1", "a:0"]}):
        with pytest.raises(ConfigError, match="is 'a:0'; it is HOST:PORT"):
            load_config(None, {"worker": values})


def test_what_is_called_may_be_a_uri():
    worker = {"advertise": "dns:///worker:7081", "gateways": ["unix:/run/icarus", "ipv6:[::1]:7080"]}
    assert load_config(None, {"worker": worker}).worker.advertise == "dns:///worker:7081"


def test_an_address_may_be_empty_where_that_is_the_default():
    load_config(None, {"metrics": {"address": ""}, "gateway": {"worker_address": ""}, "worker": {"advertise": ""}})
    with pytest.raises(ConfigError, match=r"\[gateway\] address is ''; it is HOST:PORT"):
        load_config(None, {"gateway": {"address": ""}})


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
