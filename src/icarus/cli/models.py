"""`icarus models`: what a gateway serves."""

import argparse

from rich.console import Console
from rich.table import Table

from icarus.cli.gateway import connect
from icarus.client import Model, ModelList


def run(args: argparse.Namespace) -> int:
    with connect(args) as client:
        Console().print(models_table(client.models()))
    return 0


def models_table(models: ModelList) -> Table:
    table = Table(box=None, header_style="bold", caption=f"context length {models.context_length}")
    for column in ("model", "kind", "workers", "in memory on", "digest"):
        table.add_column(column, overflow="fold")
    for model in models:
        table.add_row(
            model.name, model.mode or "base", ", ".join(model.worker_ids), _residence(model), model.digest[:12]
        )
    return table


def _residence(model: Model) -> str:
    workers = ", ".join(model.worker_ids if model.is_base else model.resident_worker_ids) or "-"
    return f"{workers} (pinned)" if model.pinned else workers
