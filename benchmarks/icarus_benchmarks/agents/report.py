"""What `icarus bench agents` shows: a line a case, the ratios beside the paper's, and the curves."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich.table import Table

from icarus.types import AdapterMode
from icarus_benchmarks.agents.cases import AMPLE, CLOSED, OPEN, TIGHT, CaseFigures
from icarus_benchmarks.agents.open_loop import ROUND_ROBIN
from icarus_benchmarks.agents.paper import CITATION, PAPER
from icarus_benchmarks.plot import Line, Panel
from icarus_benchmarks.report import Report, figures_table

_NAN = float("nan")
_LATENCY_COLUMNS = ("", "out tok/s", "P50 s", "P95 s", "P50 2+", "P95 2+", "TTFT P50", "P95")
_LATENCY_LEGEND = "P50, P95: latency of turns; 2+: without first turns; TTFT: time to first token of all turns"
_CACHE_COLUMNS = ("", "prompt tok", "computed", "local %", "remote %", "hit %", "evicted", "KV MiB")
_CACHE_LEGEND = "hit: prompt tokens not computed; evicted: blocks; KV: held at the end"


def report(figures: Sequence[CaseFigures], settings: dict[str, Any], has_open_loop: bool, device: str) -> Report:
    ratios = [_ratio(shared, private) for shared, private in _pairs(figures)]
    results = {"cases": [_as_json(each) for each in figures], "shared_over_private": ratios, "paper": _paper(ratios)}
    tables = [
        table
        for loop in (CLOSED, OPEN)
        if (ours := [each for each in figures if each.case.loop == loop])
        for table in (_latency_table(loop, ours), _cache_table(loop, ours))
    ]
    tables.append(_paper_table(ratios))
    notes = [] if has_open_loop else ["no --data, so no open loop; give ReAct's folder"]
    return Report("agents", settings, results, tables, _panels(figures), [*notes, *_doubts(figures)], device)


def _as_json(figures: CaseFigures) -> dict[str, Any]:
    turns = dataclasses.asdict(figures.turns) | {"hit_rate": figures.turns.hit_rate}
    return {**dataclasses.asdict(figures.case), "turns": turns, "cache": dataclasses.asdict(figures.cache)}


def _pairs(figures: Sequence[CaseFigures]) -> Iterable[tuple[CaseFigures, CaseFigures]]:
    """Cases that differ in the mode alone: shared, private."""
    private = {
        dataclasses.replace(each.case, mode=AdapterMode.SHARED): each
        for each in figures
        if each.case.mode is AdapterMode.PRIVATE
    }
    return ((each, private[each.case]) for each in figures if each.case.mode is AdapterMode.SHARED)


def _ratio(shared: CaseFigures, private: CaseFigures) -> dict[str, Any]:
    """How many times better shared is."""
    case = shared.case
    return {
        "loop": case.loop,
        "num_specialists": case.num_specialists,
        "kv": case.kv,
        "routing": case.routing,
        "rate": case.rate,
        "throughput": shared.turns.output_tokens_per_second / private.turns.output_tokens_per_second,
        "p95_latency": private.turns.every.p95 / shared.turns.every.p95,
        "p95_latency_later": private.turns.later.p95 / shared.turns.later.p95,
        "computed_tokens": private.turns.computed_tokens / max(shared.turns.computed_tokens, 1),
    }


def _paper(ratios: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each N that the paper or we have: its ratios, our closed loop's, our open loop's best."""
    theirs = {row.num_specialists: row for row in PAPER}
    counts = sorted({*theirs, *(ratio["num_specialists"] for ratio in ratios)})
    return [
        {
            "num_specialists": count,
            "paper": {
                "throughput": theirs[count].throughput if count in theirs else None,
                "p95_latency": theirs[count].p95_latency if count in theirs else None,
            },
            **{
                loop: {name: _best(ratios, loop, count, name) for name in ("throughput", "p95_latency")}
                for loop in (CLOSED, OPEN)
            },
        }
        for count in counts
    ]


def _best(ratios: Sequence[dict[str, Any]], loop: str, count: int, name: str) -> float | None:
    found = [
        ratio[name]
        for ratio in ratios
        if (ratio["loop"], ratio["num_specialists"], ratio["kv"]) == (loop, count, AMPLE)
    ]
    return max(found, default=None)


def _paper_table(ratios: Sequence[dict[str, Any]]) -> Table:
    rows = [
        (
            row["num_specialists"],
            *(
                _NAN if row[whose][name] is None else row[whose][name]
                for name in ("throughput", "p95_latency")
                for whose in ("paper", OPEN, CLOSED)
            ),
        )
        for row in _paper(ratios)
    ]
    table = figures_table(
        f"shared over private, ample KV, beside {CITATION}",
        ("N", "throughput paper", "open", "closed", "P95 paper", "open", "closed"),
        rows,
    )
    table.caption, table.caption_justify = "open: the best of all rates", "left"
    return table


def _latency_table(loop: str, figures: Sequence[CaseFigures]) -> Table:
    def row(each: CaseFigures) -> tuple[object, ...]:
        every, later = each.turns.every, each.turns.later
        first = every.first_token_p50, every.first_token_p95
        return _label(each), each.turns.output_tokens_per_second, every.p50, every.p95, later.p50, later.p95, *first

    table = figures_table(f"{loop} loop: time", _LATENCY_COLUMNS, list(map(row, figures)))
    table.caption, table.caption_justify = _LATENCY_LEGEND, "left"
    return table


def _cache_table(loop: str, figures: Sequence[CaseFigures]) -> Table:
    def row(each: CaseFigures) -> tuple[object, ...]:
        turns, percent = each.turns, 100 / max(each.turns.prompt_tokens, 1)
        return (
            *(_label(each), turns.prompt_tokens, turns.computed_tokens),
            *(percent * turns.local_tokens, percent * turns.remote_tokens, 100 * turns.hit_rate),
            *(each.cache.evicted_blocks, each.cache.kv_bytes_held / 2**20),
        )

    table = figures_table(f"{loop} loop: KV", _CACHE_COLUMNS, list(map(row, figures)))
    table.caption, table.caption_justify = _CACHE_LEGEND, "left"
    return table


def _label(figures: CaseFigures) -> str:
    case = figures.case
    load = () if case.rate is None else (f"{case.rate:g}/s",)
    routing = (case.routing,) if case.routing != ROUND_ROBIN else ()
    tight = ("tight",) if case.kv == TIGHT else ()
    return " ".join((str(case.num_specialists), str(case.mode), *tight, *load, *routing))


def _panels(figures: Sequence[CaseFigures]) -> list[Panel]:
    closed = [each for each in figures if (each.case.loop, each.case.kv) == (CLOSED, AMPLE)]
    panels = [
        Panel(
            "closed loop, ample KV",
            "specialists",
            "output tokens/s",
            _lines(
                closed,
                lambda each: str(each.case.mode),
                lambda each: (each.case.num_specialists, each.turns.output_tokens_per_second),
            ),
        )
    ]
    for kv in (AMPLE, TIGHT):
        cases = [each for each in figures if each.case.loop == OPEN and each.case.kv == kv]
        panels += [
            _rate_panel(kv, routing, [each for each in cases if each.case.routing == routing])
            for routing in dict.fromkeys(each.case.routing for each in cases)
        ]
    return panels


def _rate_panel(kv: str, routing: str, figures: Sequence[CaseFigures]) -> Panel:
    lines = _lines(
        figures,
        lambda each: f"{each.case.mode}, N = {each.case.num_specialists}",
        lambda each: (each.case.rate or 0.0, each.turns.every.p95),
    )
    return Panel(f"open loop, {routing}, {kv} KV", "turns/s offered", "P95 latency, s", lines)


def _lines(
    figures: Sequence[CaseFigures],
    name: Callable[[CaseFigures], str],
    point: Callable[[CaseFigures], tuple[float, float]],
) -> dict[str, Line]:
    names = dict.fromkeys(map(name, figures))
    return {each: sorted(point(f) for f in figures if name(f) == each) for each in names}


def _doubts(figures: Sequence[CaseFigures]) -> list[str]:
    return [
        f"{each.case.title}: {each.cache.evicted_blocks} blocks were evicted, so its KV was not ample; raise --kv-gib"
        for each in figures
        if each.case.kv == AMPLE and each.cache.evicted_blocks
    ]
