"""`icarus bench engine`: prefill, decode and the paired step, of an engine in this process.

The kinds that are compared, each on the same model with a pool of its own, take turns repetition by repetition and
step by step, so that whatever else the machine does disturbs them alike. Every figure is a median.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from icarus.adapters.lora import LoraWeights
from icarus.config import Config
from icarus.errors import ConfigError, IntegrityError
from icarus.model.digest import base_digest
from icarus.model.loading import load_model
from icarus.model.two_stream import TwoStreamModel
from icarus.types import AdapterMode
from icarus.worker.compute import prepare_compute
from icarus_benchmarks.engine.figures import DecodeFigures, EngineJob, MemoryFigures, PrefillFigures
from icarus_benchmarks.engine.in_process import InProcessEngine, load_specialists
from icarus_benchmarks.engine.report import report
from icarus_benchmarks.machine import resident_bytes
from icarus_benchmarks.model_folder import model_folder
from icarus_benchmarks.percentiles import median, percentile
from icarus_benchmarks.report import Report
from icarus_benchmarks.specialists import write_specialists
from icarus_benchmarks.workload import random_ids

_WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Kind:
    """Whose turns a batch is made of; turns take its specialists in turn."""

    name: str
    specialists: Sequence[LoraWeights] = ()

    def adapter(self, index: int) -> LoraWeights | None:
        return self.specialists[index % len(self.specialists)] if self.specialists else None


def run(job: EngineJob, config: Config, progress: Callable[[str], None]) -> Report:
    """Loads the model here and measures. Raises ConfigError where the model or the settings do not work."""
    with model_folder(config.model.path, job.random_weights, progress) as folder:
        return _measure(folder, job, config, progress)


def _measure(folder: Path, job: EngineJob, config: Config, progress: Callable[[str], None]) -> Report:
    prepare_compute(config.engine.num_threads)
    progress(f"loading {folder.name}")
    model = load_model(folder, config.model.dtype, config.model.device)
    with_model = resident_bytes()
    kinds = _kinds(model, folder, job, config)
    with_specialists = resident_bytes()
    progress(f"prefill of {job.prefill_tokens} tokens")
    prefills = measure_prefill(model, config, kinds, job)
    decodes: list[DecodeFigures] = []
    for batch in job.batches:
        progress(f"decode, batch {batch}, context {job.decode_context}")
        decodes += measure_decode(model, config, kinds, batch, job.decode_context, job.num_steps)
    progress(f"paired step, batch {job.paired_batch}, context {job.paired_context}")
    paired = measure_decode(model, config, kinds, job.paired_batch, job.paired_context, job.num_steps)
    kv_per_token = InProcessEngine(model, config, 1, 1).kv_bytes_per_token
    memory = MemoryFigures(with_model, with_specialists, resident_bytes(), kv_per_token)
    return report(job, config, prefills, decodes, paired, memory)


def measure_prefill(
    model: TwoStreamModel, config: Config, kinds: Sequence[Kind], job: EngineJob
) -> list[PrefillFigures]:
    """The first repetition of each kind is not counted."""
    engine = InProcessEngine(model, config, 1, job.prefill_tokens + 1)
    seconds: dict[str, list[float]] = {kind.name: [] for kind in kinds}
    for repetition in range(job.repetitions + 1):
        for kind in kinds:
            ids = random_ids(("prefill", kind.name, repetition), job.prefill_tokens, model.config.vocab_size)
            engine.submit(ids, kind.adapter(0), max_tokens=1)
            seconds[kind.name].append(engine.finish())
    return [_prefill_figures(kind.name, job.prefill_tokens, seconds[kind.name][1:]) for kind in kinds]


def _prefill_figures(kind: str, num_tokens: int, seconds: Sequence[float]) -> PrefillFigures:
    middle = median(seconds)
    return PrefillFigures(kind, num_tokens, middle, num_tokens / middle, tuple(seconds))


def measure_decode(
    model: TwoStreamModel, config: Config, kinds: Sequence[Kind], batch: int, context: int, num_steps: int
) -> list[DecodeFigures]:
    """Prompts of `context` tokens, prefilled first; then a step of each kind in turn, `num_steps` times. No request
    ends meanwhile. Raises ConfigError where a step has no room for the batch."""
    num_outputs = _steps_to_fill(batch, context, config.engine.max_batch_tokens) + 1 + _WARM_UP_STEPS + num_steps
    engines = {kind.name: InProcessEngine(model, config, batch, context + num_outputs) for kind in kinds}
    for kind in kinds:
        _fill(engines[kind.name], kind, batch, context, num_outputs, model.config.vocab_size)
    seconds: dict[str, list[float]] = {kind.name: [] for kind in kinds}
    for _ in range(_WARM_UP_STEPS + num_steps):
        for name, engine in engines.items():
            seconds[name].append(engine.step())
    for name, engine in engines.items():
        if engine.num_running != batch:
            raise IntegrityError(f"{name}: the batch had {engine.num_running} requests at the end instead of {batch}")
    return [
        _decode_figures(name, batch, context, engine.kv_bytes, seconds[name][_WARM_UP_STEPS:])
        for name, engine in engines.items()
    ]


def _steps_to_fill(batch: int, context: int, max_batch_tokens: int) -> int:
    """At most so many steps until all prompts are computed, while those that are take two rows of each step."""
    room = max_batch_tokens - 2 * batch
    if room < 2:
        raise ConfigError(
            f"[engine] max_batch_tokens is {max_batch_tokens}; a batch of {batch} needs {2 * batch + 2} or more"
        )
    return batch * -(-context // room) + batch


def _fill(engine: InProcessEngine, kind: Kind, batch: int, context: int, max_tokens: int, vocab_size: int) -> None:
    """Steps until every prompt is computed; the first ones have some output by then."""
    for index in range(batch):
        engine.submit(random_ids(("decode", kind.name, index), context, vocab_size), kind.adapter(index), max_tokens)
    while not engine.is_decoding:
        engine.step()


def _decode_figures(kind: str, batch: int, context: int, kv_bytes: int, seconds: Sequence[float]) -> DecodeFigures:
    middle = median(seconds)
    return DecodeFigures(kind, batch, context, middle, percentile(seconds, 95), batch / middle, kv_bytes)


def _kinds(model: TwoStreamModel, folder: Path, job: EngineJob, config: Config) -> list[Kind]:
    digest = base_digest(folder)
    with tempfile.TemporaryDirectory(prefix="icarus-bench-") as adapters:
        folders = write_specialists(Path(adapters), folder, job.num_specialists, job.rank)
        return [
            Kind("base"),
            Kind("shared", load_specialists(model, config, folders, AdapterMode.SHARED, digest)),
            Kind("private", load_specialists(model, config, folders, AdapterMode.PRIVATE, digest)),
        ]
