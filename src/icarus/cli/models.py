"""`icarus models`: what a gateway serves."""

import argparse
import dataclasses
import json
import sys

from rich.console import Console
from rich.table import Table

from icarus.cli.gateway import connect
from icarus.client import Model, ModelList

_COLUMNS = ("model", "kind", "workers", "in memory on", "digest")


def run(args: argparse.Namespace) -> int:
    with connect(args) as client:
        models = client.models()
    if args.json:
        sys.stdout.write(json.dumps(dataclasses.asdict(models), indent=1) + "\n")
    elif sys.stdout.isatty():
        show_models(models, stderr=False)
    else:
        sys.stdout.writelines("\t".join(row) + "\n" for row in [_COLUMNS, *map(_row, models)])
    return 0


def show_models(models: ModelList, stderr: bool) -> None:
    """The table, with names as they are."""
    Console(stderr=stderr, markup=False, highlight=False, emoji=False).print(models_table(models))


def models_table(models: ModelList) -> Table:
    table = Table(box=None, header_style="bold", caption=f"context length {models.context_length}")
    for column in _COLUMNS:
        table.add_column(column, overflow="fold")
    for model in models:
        table.add_row(*_row(model))
    return table


def _row(model: Model) -> tuple[str, ...]:
    return model.name, model.mode or "base", ", ".join(model.worker_ids), _residence(model), model.digest[:12]


def _residence(model: Model) -> str:
    workers = ", ".join(model.resident_worker_ids) or "-"
    return f"{workers} (pinned)" if model.pinned else workers
