"""What the demo shows and writes."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from icarus.cli.demo.chain import Chain, TurnFigures

_MIB = 2**20
_LEGEND = "p0: prefill-0, d1: decode-1; cross: reused tokens that others wrote"
_TTFT = "median_ttft_seconds_later_turns"
_WHAT = {
    "computed_tokens": "encoder tokens computed",
    "kv_bytes_distinct": "distinct KV, MiB",
    "kv_bytes_held": "KV held in all pools, MiB",
    _TTFT: "median time to first token, turns 2 on, s",
    "wall_seconds": "wall time, s",
}
"""The rows of the comparison, by field of Totals."""


def turns_table(title: str, turns: Sequence[TurnFigures]) -> Table:
    """A line a turn, in 80 columns."""
    table = Table(title=title, caption=_LEGEND, title_justify="left", caption_justify="left", title_style="bold")
    table.box, table.padding, table.pad_edge = None, (0, 1, 0, 0), False
    for name in ("", "specialist", "path"):
        table.add_column(name, no_wrap=True)
    for name in ("prompt", "computed", "local", "remote", "cross", "reads", "MiB", "TTFT s", "tok/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for turn in turns:
        table.add_row(*_turn_row(turn))
    return table


def _turn_row(turn: TurnFigures) -> list[str]:
    path = ">".join(_short(worker) for worker in (turn.prefill_worker, turn.decode_worker) if worker is not None)
    counts = (
        turn.prompt_tokens,
        turn.computed_tokens,
        turn.local_tokens,
        turn.remote_tokens,
        turn.cross_adapter_tokens,
        turn.nixl_reads,
    )
    figures = (f"{turn.nixl_bytes / _MIB:.1f}", f"{turn.ttft_seconds:.2f}", f"{turn.tokens_per_second:.1f}")
    return [str(turn.turn), turn.specialist.removesuffix("-private"), path, *map(str, counts), *figures]


def _short(worker: str) -> str:
    role, _, number = worker.partition("-")
    return role[:1] + number


def answers_table(turns: Sequence[TurnFigures]) -> Table:
    """What those said who are trained."""
    table = Table(title="what the trained specialists said", title_justify="left", title_style="bold")
    table.box, table.show_header, table.padding, table.pad_edge = None, False, (0, 1, 0, 0), False
    for turn in turns:
        table.add_row(str(turn.turn), turn.specialist, Text(turn.answer.strip()))
    return table


def comparison_table(shared: Chain, private: Chain) -> Table:
    """Both chains side by side."""
    table = Table(title="one KV cache against eight", title_justify="left", title_style="bold", box=None)
    table.add_column("")
    for name in ("private", "shared", "private / shared"):
        table.add_column(name, justify="right")
    for field, ratio in ratios(shared, private).items():
        values = [_show(field, getattr(chain.totals, field)) for chain in (private, shared)]
        table.add_row(_WHAT[field], *values, f"{ratio:.1f}")
    return table


def ratios(shared: Chain, private: Chain) -> dict[str, float]:
    """Private over shared, for the fields that the comparison shows."""
    return {name: getattr(private.totals, name) / max(getattr(shared.totals, name), 1e-9) for name in _WHAT}


def _show(field: str, value: float) -> str:
    if field.startswith("kv_bytes"):
        return f"{value / _MIB:.1f}"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def write_json(path: Path, shared: Chain, private: Chain, settings: dict[str, Any]) -> None:
    """Every figure. `turns` has both chains', told apart by `mode`."""
    content = {
        "settings": settings,
        "turns": [dataclasses.asdict(turn) for chain in (shared, private) for turn in chain.turns],
        "totals": {"shared": dataclasses.asdict(shared.totals), "private": dataclasses.asdict(private.totals)},
        "private_over_shared": ratios(shared, private),
        "notes": [*shared.notes, *private.notes],
    }
    path.write_text(json.dumps(content, indent=2) + "\n")
