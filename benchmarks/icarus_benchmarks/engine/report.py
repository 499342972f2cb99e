"""What `icarus bench engine` shows: a table a question, and decode against the batch."""

import dataclasses
from collections.abc import Sequence

from rich.table import Table

from icarus.config import Config
from icarus_benchmarks.engine.figures import DecodeFigures, EngineJob, MemoryFigures, PrefillFigures
from icarus_benchmarks.plot import Panel
from icarus_benchmarks.report import Report, figures_table


def report(
    job: EngineJob,
    config: Config,
    prefills: Sequence[PrefillFigures],
    decodes: Sequence[DecodeFigures],
    paired: Sequence[DecodeFigures],
    memory: MemoryFigures,
) -> Report:
    step = {figures.kind: figures.step_seconds for figures in paired}
    ratios = {f"shared_over_{kind}": step["shared"] / step[kind] for kind in ("base", "private")}
    results = {
        "prefill": [dataclasses.asdict(figures) for figures in prefills],
        "decode": [dataclasses.asdict(figures) for figures in decodes],
        "paired_step": {"steps": [dataclasses.asdict(figures) for figures in paired], **ratios},
        "memory": dataclasses.asdict(memory),
    }
    tables = [
        _prefill_table(job, prefills),
        _decode_table(job, decodes),
        _step_table(job, paired, step["shared"]),
        _memory_table(memory),
    ]
    settings = {"job": dataclasses.asdict(job), "config": dataclasses.asdict(config)}
    return Report("engine", settings, results, tables, [_decode_panel(job, decodes)], device=config.model.device)


def _prefill_table(job: EngineJob, prefills: Sequence[PrefillFigures]) -> Table:
    return figures_table(
        f"prefill of {job.prefill_tokens} tokens",
        ("", "seconds", "tokens/s"),
        [(_title(figures.kind, job), figures.seconds, figures.tokens_per_second) for figures in prefills],
    )


def _decode_table(job: EngineJob, decodes: Sequence[DecodeFigures]) -> Table:
    return figures_table(
        f"decode, tokens/s, prompts of {job.decode_context} tokens",
        ("", *(f"batch {batch}" for batch in job.batches)),
        [
            (_title(kind, job), *(figures.tokens_per_second for figures in of_kind))
            for kind, of_kind in _by_kind(decodes).items()
        ],
    )


def _step_table(job: EngineJob, paired: Sequence[DecodeFigures], shared_seconds: float) -> Table:
    return figures_table(
        f"a step, batch {job.paired_batch}, prompts of {job.paired_context} tokens",
        ("", "ms", "P95 ms", "paired / this"),
        [
            (_title(f.kind, job), 1e3 * f.step_seconds, 1e3 * f.step_seconds_p95, shared_seconds / f.step_seconds)
            for f in paired
        ],
    )


def _memory_table(memory: MemoryFigures) -> Table:
    sizes = (
        memory.resident_with_model,
        memory.resident_with_specialists,
        memory.resident_at_end,
        1000 * memory.kv_per_token,
    )
    return figures_table(
        "memory, MiB",
        ("process with the model", "with specialists", "at the end", "KV of 1,000 tokens"),
        [[size / 2**20 for size in sizes]],
    )


def _decode_panel(job: EngineJob, decodes: Sequence[DecodeFigures]) -> Panel:
    curves = {
        kind: [(figures.batch, figures.tokens_per_second) for figures in of_kind]
        for kind, of_kind in _by_kind(decodes).items()
    }
    return Panel(f"decode, prompts of {job.decode_context} tokens", "batch", "tokens/s", curves, log_x=True)


def _by_kind(decodes: Sequence[DecodeFigures]) -> dict[str, list[DecodeFigures]]:
    kinds = dict.fromkeys(figures.kind for figures in decodes)
    return {kind: [figures for figures in decodes if figures.kind == kind] for kind in kinds}


def _title(kind: str, job: EngineJob) -> str:
    return {
        "base": "base, one stream",
        "shared": f"{job.num_specialists} shared specialists, paired",
        "private": f"{job.num_specialists} private specialists, one stream",
    }[kind]
