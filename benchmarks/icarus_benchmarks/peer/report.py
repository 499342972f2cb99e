"""What `icarus bench peer` shows: every job of every server, and the ratios that the two are judged by."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from icarus_benchmarks.plot import Panel
from icarus_benchmarks.report import Report, figures_table

FAST, NO_LORA = "vLLM fast", "vLLM nolora"
"""The second words are serve.sh's modes."""
DECODE_ONLY, FULL = "icarus", "icarus + prefill"
_NAN = float("nan")


@dataclass(frozen=True)
class Run:
    """One job of `workload.py` against one server."""

    server: str
    job: str
    figures: dict[str, Any]
    """As the script wrote them."""


@dataclass(frozen=True)
class Comparison:
    """A figure of ours over one of the peer's. A job is known by its beginning: the rest is its size."""

    what: str
    figure: str
    ours: str
    peer: str
    theirs: str


_AGENTS, _IDEAL = "agents:multi", "agents:base"
_COMPARISONS = (
    Comparison("agents, 8 LoRAs: output tokens/s", "out_tok_s", _AGENTS, FAST, _AGENTS),
    Comparison("agents, 8 LoRAs: P95 of turns 2 on, s", "lat95_t2plus", _AGENTS, FAST, _AGENTS),
    Comparison("agents, 8 LoRAs: P95, s, to one model's", "lat95", _AGENTS, NO_LORA, _IDEAL),
    Comparison("agents, 8 LoRAs: tokens/s, to one model's", "out_tok_s", _AGENTS, NO_LORA, _IDEAL),
    Comparison("prefill, 1 LoRA: tokens/s", "tok_s", "prefill:a0", FAST, "prefill:a0"),
    Comparison("decode, batch 8, 8 LoRAs: tokens/s", "decode_tok_s", "decode:mix:8", FAST, "decode:mix:8"),
    Comparison("prefill, base: tokens/s", "tok_s", "prefill:base", NO_LORA, "prefill:base"),
    Comparison("decode, batch 1, base: tokens/s", "decode_tok_s", "decode:base:1", NO_LORA, "decode:base:1"),
    Comparison("decode, batch 8, base: tokens/s", "decode_tok_s", "decode:base:8", NO_LORA, "decode:base:8"),
)


def report(runs: Sequence[Run], settings: dict[str, Any], failures: Sequence[str]) -> Report:
    ratios = [ratio for server in (DECODE_ONLY, FULL) for ratio in _ratios(runs, server)]
    tables = [
        figures_table(
            "agents",
            ("", "job", "out tok/s", "P50 s", "P95 s", "P95 2+", "TTFT P50", "hit %"),
            [_agents_row(run) for run in runs if run.figures["bench"] == "agents"],
        ),
        figures_table(
            "ratios",
            ("", "ours", "what", "peer", "ratio"),
            [(r["server"], r["ours"], r["what"], r["theirs"], r["ratio"]) for r in ratios],
        ),
    ]
    results = {"runs": [vars(run) for run in runs], "ratios": ratios}
    return Report("peer", settings, results, tables, [_panel(runs)], [*failures, *_doubts(runs)])


def _ratios(runs: Sequence[Run], server: str) -> list[dict[str, Any]]:
    """Where both sides ran."""
    found = []
    for each in _COMPARISONS:
        ours, theirs = _figure(runs, server, each.ours, each.figure), _figure(runs, each.peer, each.theirs, each.figure)
        if ours is not None and theirs is not None:
            ratio = ours / theirs if theirs else _NAN
            found.append(
                {"what": each.what, "server": server, "peer": each.peer, "ours": ours, "theirs": theirs, "ratio": ratio}
            )
    return found


def _figure(runs: Sequence[Run], server: str, job: str, figure: str) -> float | None:
    return next((run.figures[figure] for run in runs if run.server == server and run.job.startswith(job)), None)


def _agents_row(run: Run) -> tuple[object, ...]:
    f = run.figures
    return (
        *(run.server, run.job.removeprefix("agents:")),
        *(f["out_tok_s"], f["lat50"], f["lat95"], f["lat95_t2plus"], f["ttft50"], 100 * f["hit"]),
    )


def _panel(runs: Sequence[Run]) -> Panel:
    servers = list(dict.fromkeys(run.server for run in runs))
    rates = {
        run.server: [(servers.index(run.server) + 1.0, run.figures["out_tok_s"])]
        for run in runs
        if run.figures["bench"] == "agents"
    }
    return Panel("agents: output tokens/s", "server", "tokens/s", rates)


def _doubts(runs: Sequence[Run]) -> list[str]:
    loud = [f"{run.server} {run.job}" for run in runs if not run.figures["quiet_start"]]
    return [f"other processes kept the machine busy before {', '.join(loud)}"] if loud else []
