"""Flags out of the settings' dataclasses, and back: `[cache] num_blocks` is `--cache-num-blocks`."""

import argparse
import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from icarus.config import Config, load_config

Sections = Mapping[str, Sequence[str]]
"""Section -> the fields that become flags; every field when empty."""

ALL: Sequence[str] = ()


def add_flags(parser: argparse.ArgumentParser, sections: Sections) -> None:
    """Adds `--config` and a flag for each field; what is not given stays out of the parsed arguments."""
    parser.add_argument("--config", metavar="FILE", help="a TOML file with the same settings; flags win over it")
    types_of = typing.get_type_hints(Config)
    for section, names in sections.items():
        group = parser.add_argument_group(f"[{section}]", types_of[section].__doc__)
        hints = typing.get_type_hints(types_of[section])
        for field in dataclasses.fields(types_of[section]):
            if not names or field.name in names:
                _add_flag(group, section, field, hints[field.name])


def read_config(args: argparse.Namespace) -> Config:
    """Defaults, then `--config`, then the flags. Raises ConfigError naming what is wrong."""
    overrides: dict[str, dict[str, Any]] = {}
    for dest, value in vars(args).items():
        section, dot, name = dest.partition(".")
        if dot:
            overrides.setdefault(section, {})[name] = value
    return load_config(args.config, overrides)


def to_flags(config: Config, sections: Sections) -> list[str]:
    """The flags that make a command of these sections read this config: what differs from the defaults."""
    flags: list[str] = []
    for section, names in sections.items():
        values = getattr(config, section)
        for field in dataclasses.fields(values):
            value = getattr(values, field.name)
            if value != field.default and (not names or field.name in names):
                flags += _to_flag(_option(section, field.name), value)
    return flags


def _option(section: str, name: str) -> str:
    return f"--{section}-{name.replace('_', '-')}"


def _to_flag(option: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [option if value else option.replace("--", "--no-", 1)]
    values = value if isinstance(value, tuple) else (value,)
    return [f"{option}={item}" for item in values]


def _add_flag(group: Any, section: str, field: dataclasses.Field[Any], hint: Any) -> None:
    keywords: dict[str, Any] = {"dest": f"{section}.{field.name}", "default": argparse.SUPPRESS}
    text = field.metadata["help"]
    metavar = field.metadata["metavar"] or {int: "N", float: "X"}.get(hint, "TEXT")
    if hint is bool:
        keywords["action"] = argparse.BooleanOptionalAction
    elif isinstance(hint, types.GenericAlias):
        keywords |= {"action": "append", "metavar": metavar}
        text += "; may be repeated"
    else:
        keywords |= {"type": hint, "metavar": metavar}
    group.add_argument(
        _option(section, field.name), help=(text + _default(field.default)).replace("%", "%%"), **keywords
    )


def _default(value: Any) -> str:
    if isinstance(value, bool):
        value = "on" if value else "off"
    shown = " ".join(value) if isinstance(value, tuple) else str(value)
    return f" (default: {shown})" if shown else ""
