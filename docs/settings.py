"""Writes docs/settings.md out of the settings' dataclasses: `python docs/settings.py FILE`."""

import dataclasses
import json
import sys
import typing
from pathlib import Path
from typing import Any

from icarus.cli.sections import GATEWAY, WORKER
from icarus.config import Config

HEAD = """# Settings

Written by `make settings` out of `src/icarus/config.py`. Each is a key of one TOML file (`--config FILE`) and a flag of
the same name, which wins: `[cache] num_blocks` is `--cache-num-blocks`.
[operations.md](operations.md#settings-that-matter) says which to touch, and when.
"""


def main(file: Path) -> None:
    sections = typing.get_type_hints(Config)
    file.write_text("\n".join([HEAD, *(_section(name, section) for name, section in sections.items())]))


def _section(name: str, section: type) -> str:
    rows = [_row(field) for field in dataclasses.fields(section)]
    head = f"## [{name}]\n\n{section.__doc__} Read by {_readers(name)}.\n"
    return "\n".join([head, "| key | default | range | what |", "| --- | --- | --- | --- |", *rows, ""])


def _readers(section: str) -> str:
    """The services whose flags it has."""
    if section not in GATEWAY:
        return "workers"
    if section not in WORKER:
        return "the gateway"
    names = GATEWAY[section]
    return "workers and the gateway" + (f" (there {', '.join(f'`{name}`' for name in names)} alone)" if names else "")


def _row(field: dataclasses.Field[Any]) -> str:
    cells = (f"`{field.name}`", f"`{json.dumps(field.default)}`", _range(**field.metadata))
    return f"| {' | '.join(cells)} | {field.metadata['help']} |".replace("|  |", "| |")


def _range(least: float | None, most: float | None, **_: Any) -> str:
    if least is None:
        return ""
    return f"from {least}" if most is None else f"{least} to {most}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
