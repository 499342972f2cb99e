"""Flags of `icarus train` out of its settings' dataclass, and back."""

import argparse
import dataclasses
import typing
from typing import Any

from icarus.training.settings import TrainSettings


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for each setting; what is not given stays out of the parsed arguments."""
    hints = typing.get_type_hints(TrainSettings)
    for field in dataclasses.fields(TrainSettings):
        kind, metadata = hints[field.name], field.metadata
        keywords: dict[str, Any] = {"default": argparse.SUPPRESS, "required": field.name == "data"}
        if kind is bool:
            keywords["action"] = "store_true"
        elif kind in (int, float, str):
            metavar = {int: "N", float: "X", str: "FILE" if "JSONL" in metadata["help"] else "TEXT"}[kind]
            keywords |= (
                {"choices": metadata["choices"]} if "choices" in metadata else {"type": kind, "metavar": metavar}
            )
        else:
            keywords |= {"action": "extend", "nargs": "+", "metavar": "MODULE"}
        shown = f" (default: {field.default})" if kind is not bool and field.default not in ("", ()) else ""
        parser.add_argument(f"--{field.name.replace('_', '-')}", help=metadata["help"] + shown, **keywords)


def read_settings(args: argparse.Namespace) -> TrainSettings:
    """Raises InvalidInputError naming the flag that is out of range."""
    names = {field.name for field in dataclasses.fields(TrainSettings)}
    given: dict[str, Any] = {name: value for name, value in vars(args).items() if name in names}
    if "targets" in given:
        given["targets"] = tuple(given["targets"])
    return TrainSettings(**given)
