"""One source for TOML keys, flags and help."""

import argparse
import dataclasses
import typing

import pytest

from icarus.cli.flags import add_flags, read_config, to_flags
from icarus.cli.parser import build_parser
from icarus.cli.sections import of_process
from icarus.config import Config
from icarus.errors import ConfigError, InvalidInputError

SECTIONS = {field.name: () for field in dataclasses.fields(Config)}


def parse(*argv, sections=None):
    parser = argparse.ArgumentParser()
    add_flags(parser, sections or SECTIONS)
    return read_config(parser.parse_args(argv))


FORMED = {"dtype": "float16", "device": "cuda", "gateways": ("a:1", "[::1]:2")}


def other_value(field, hint):
    """A value that the field takes and that is not its default."""
    if hint is bool:
        return not field.default
    if hint in (int, float):
        return hint(1 if field.metadata["most"] else field.default + 3)
    if field.name.endswith(("address", "advertise")):
        return "other:1"
    return FORMED.get(field.name, "other" if hint is str else ("one=a:private", "two=b"))


def all_changed():
    types_of = typing.get_type_hints(Config)
    sections = {}
    for name, section in types_of.items():
        hints = typing.get_type_hints(section)
        sections[name] = section(**{f.name: other_value(f, hints[f.name]) for f in dataclasses.fields(section)})
    return Config(**sections)


def test_nothing_given_is_the_default():
    assert parse() == Config()


def test_every_setting_survives_the_way_through_its_flag():
    config = all_changed()
    assert parse(*to_flags(config, SECTIONS)) == config
    assert to_flags(Config(), SECTIONS) == []


def test_every_setting_has_a_flag_with_its_help_and_default(capsys):
    parser = argparse.ArgumentParser(formatter_class=lambda prog: argparse.HelpFormatter(prog, width=1000))
    add_flags(parser, SECTIONS)
    text = parser.format_help()
    for section, kind in typing.get_type_hints(Config).items():
        for field in dataclasses.fields(kind):
            assert f"--{section}-{field.name.replace('_', '-')}" in text
            assert field.metadata["help"] in text
    assert "--gateway-address HOST:PORT" in text and "--worker-adapter-root FOLDER" in text
    assert "blocks in a worker's pool (default: 1024)" in text and "(default: on)" in text


def test_flag_and_file_mean_the_same(tmp_path):
    file = tmp_path / "icarus.toml"
    file.write_text('[cache]\nnum_blocks = 7\nprefix_reuse = false\n[worker]\ngateways = ["a:1", "b:2"]\n')
    flags = ["--cache-num-blocks", "7", "--no-cache-prefix-reuse", "--worker-gateways=a:1", "--worker-gateways=b:2"]
    assert parse("--config", str(file)) == parse(*flags) != Config()


def test_flags_win_over_the_file(tmp_path):
    file = tmp_path / "icarus.toml"
    file.write_text("[cache]\nnum_blocks = 7\nblock_size = 8\n")
    config = parse("--config", str(file), "--cache-num-blocks", "9")
    assert (config.cache.num_blocks, config.cache.block_size) == (9, 8)


def test_a_file_may_hold_sections_that_a_command_has_no_flags_for(tmp_path):
    file = tmp_path / "icarus.toml"
    file.write_text("[gateway]\nmax_sessions = 3\n[engine]\nnum_threads = 1\n")
    assert parse("--config", str(file), sections={"cache": ()}).gateway.max_sessions == 3


def test_only_the_named_fields_become_flags():
    assert parse("--worker-adapters=a=b", sections={"worker": ("adapters",)}).worker.adapters == ("a=b",)
    with pytest.raises(SystemExit):
        parse("--worker-id=x", sections={"worker": ("adapters",)})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[cash]\n", ["cash", "cache"]),
        ("[cache]\nblocks = 3\n", ["blocks", "num_blocks"]),
        ("[cache]\nnum_blocks = 'x'\n", ["num_blocks", "int", "x"]),
        ("[cache\n", ["TOML"]),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path, text, words):
    file = tmp_path / "icarus.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        parse("--config", str(file))
    assert all(word in str(caught.value) for word in words)


def test_a_command_has_the_sections_that_concern_it():
    parser = build_parser()
    gateway = parser.parse_args(["serve", "gateway", "--gateway-max-sessions=4", "--model-path=m"])
    assert read_config(gateway).gateway.max_sessions == 4
    assert "cache" not in of_process("gateway") and "gateway" not in of_process("decode")
    with pytest.raises(InvalidInputError, match="--cache-num-blocks"):
        parser.parse_args(["serve", "gateway", "--cache-num-blocks=4"])


@pytest.mark.parametrize("role", ["gateway", "prefill", "decode"])
def test_what_up_is_told_reaches_its_processes(role):
    config = parse("--transfer-stage-timeout-seconds=20", "--model-path=m", "--transfer-lease-seconds=3")
    told = read_config(build_parser().parse_args(["serve", role, *to_flags(config, of_process(role))]))
    assert (told.transfer.stage_timeout_seconds, told.model.path) == (20, "m")
    assert told.transfer.lease_seconds == (Config().transfer.lease_seconds if role == "gateway" else 3)
