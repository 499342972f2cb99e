"""What a benchmark leaves behind: tables on the terminal, every figure as JSON, a plot."""

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from icarus_benchmarks.machine import Machine
from icarus_benchmarks.plot import Panel


@dataclass(frozen=True)
class Report:
    """One benchmark's figures in every form."""

    benchmark: str
    settings: dict[str, Any]
    results: dict[str, Any]
    """As JSON has it."""
    tables: Sequence[Table]
    panels: Sequence[Panel]
    notes: Sequence[str] = ()
    """What a reader of the figures must know."""
    device: str = "cpu"
    """What computed."""


def write_json(path: Path, report: Report, command: str, machine: Machine) -> None:
    """Everything but tables and panels. NaN becomes null."""
    content = {
        "benchmark": report.benchmark,
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "machine": dataclasses.asdict(machine),
        "settings": report.settings,
        "results": report.results,
        "notes": list(report.notes),
    }
    path.write_text(json.dumps(_plain(content), indent=2, allow_nan=False, default=str) + "\n")


def figures_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A row of names (columns until the first figure) and figures, in the look of the demo's tables.

    Where it is too wide, headings and names take several lines."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.padding = (0, 1, 0, 0)
    for index, column in enumerate(columns):
        is_name = all(isinstance(row[index], str) for row in rows)
        least = None if is_name else max(len(_show(row[index])) for row in rows)
        table.add_column(column, justify="left" if is_name else "right", min_width=least, overflow="fold")
    for row in rows:
        table.add_row(*map(_show, row))
    return table


def _show(value: object) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    if math.isnan(value):
        return "-"
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2
    return f"{value:,.{digits}f}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
