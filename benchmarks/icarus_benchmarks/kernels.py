"""`icarus bench kernels`: what each op of `icarus_kernels` moves, and how that compares with a plain copy.

Bytes are those that an op must read and write once (queries, keys, values, matrices, outputs), so the bandwidth of one
that reads anything twice is its own loss. The copy is of a buffer far larger than any cache, and counts what it reads
and writes. Medians; caches are overwritten before each repetition, and on a GPU events time the device alone.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from icarus_kernels import (
    AttentionRows,
    Columns,
    LoraRows,
    LoraSegment,
    LoraTable,
    SequenceRows,
    add_gumbel_noise,
    add_segmented_lora,
    paged_attention,
    store_kv,
)
from torch import Tensor

from icarus_benchmarks.machine import require_device
from icarus_benchmarks.model_shapes import SHAPES, ModelShape
from icarus_benchmarks.percentiles import median
from icarus_benchmarks.plot import Panel
from icarus_benchmarks.report import Report, figures_table

_BLOCK_SIZE = 16
_PREFILL_CHUNK = 512
_WARM_UP = 3
_COPY_BYTES = {"cuda": 2**30, "cpu": 2**28}
_CACHE_BYTES = 2**28
"""More than a GPU's L2 or a CPU's last level."""


@dataclass(frozen=True)
class KernelsJob:
    """What is measured."""

    device: str
    shape: str
    """A name of SHAPES."""
    dtype: str
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    rank: int
    repetitions: int


@dataclass(frozen=True)
class Op:
    """A call to time, and the bytes that it has to move."""

    name: str
    batch: int
    context: int
    """0 where it does not matter."""
    num_bytes: int
    call: Callable[[], object]


@dataclass(frozen=True)
class OpFigures:
    """What an op reached."""

    op: str
    batch: int
    context: int
    num_bytes: int
    seconds: float
    bytes_per_second: float
    share_of_copy: float


def run(job: KernelsJob, progress: Callable[[str], None]) -> Report:
    """Raises ConfigError where the device is not there."""
    require_device(job.device)
    copy = _copy(job)
    copy_rate = copy.num_bytes / _time(copy, job)
    progress(f"a copy moves {copy_rate / 1e9:.1f} GB/s")
    figures = []
    for op in _ops(job):
        progress(f"{op.name}, batch {op.batch}" + (f", context {op.context}" if op.context else ""))
        seconds = _time(op, job)
        rate = op.num_bytes / seconds
        figures.append(OpFigures(op.name, op.batch, op.context, op.num_bytes, seconds, rate, rate / copy_rate))
    return _report(job, copy_rate, figures)


def _ops(job: KernelsJob) -> Iterator[Op]:
    """One after the other, so that only one op's tensors are there at a time."""
    shape = SHAPES[job.shape]
    for batch in job.batches:
        for context in job.contexts:
            yield _decode(job, shape, batch, context, num_streams=1)
            yield _decode(job, shape, batch, context, num_streams=2)
        yield _store(job, shape, batch)
        for name in ("q_proj", "gate_up", "down_proj"):
            yield _lora(job, shape, batch, name)
        yield _noise(job, shape, batch)
    for context in job.contexts:
        yield _prefill(job, shape, context)
    yield _store(job, shape, _PREFILL_CHUNK)


def _decode(job: KernelsJob, shape: ModelShape, batch: int, context: int, num_streams: int) -> Op:
    """Every sequence has one token at the end of its context; with two streams, two rows of it."""
    per_sequence = -(-context // _BLOCK_SIZE)
    sequences = [
        SequenceRows(
            [index + stream * batch for stream in range(num_streams)],
            [context - 1] * num_streams,
            range(index * per_sequence, (index + 1) * per_sequence),
        )
        for index in range(batch)
    ]
    name = "attention, decode" if num_streams == 1 else "attention, paired decode"
    return _attention(job, shape, name, sequences, batch, context)


def _prefill(job: KernelsJob, shape: ModelShape, context: int) -> Op:
    """A chunk at the end of one context."""
    rows = min(_PREFILL_CHUNK, context)
    sequence = SequenceRows(range(rows), range(context - rows, context), range(-(-context // _BLOCK_SIZE)))
    return _attention(job, shape, f"attention, chunk of {rows}", [sequence], 1, context)


def _attention(
    job: KernelsJob, shape: ModelShape, name: str, sequences: list[SequenceRows], batch: int, context: int
) -> Op:
    num_rows = sum(len(sequence.row_ids) for sequence in sequences)
    num_blocks = sum(len(sequence.block_ids) for sequence in sequences)
    scattered = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(0)).tolist()
    sequences = [s._replace(block_ids=[scattered[block] for block in s.block_ids]) for s in sequences]
    rows = AttentionRows.build(sequences, _BLOCK_SIZE, job.device)
    query = _random(job, num_rows, shape.num_heads, shape.head_dim)
    pages = _random(job, num_blocks, 2, _BLOCK_SIZE, shape.num_kv_heads, shape.head_dim)
    kv_bytes = batch * context * 2 * shape.num_kv_heads * shape.head_dim * pages.element_size()
    return Op(name, batch, context, kv_bytes + 2 * query.nbytes, lambda: paged_attention(query, pages, rows))


def _store(job: KernelsJob, shape: ModelShape, num_rows: int) -> Op:
    keys, values = (_random(job, num_rows, shape.num_kv_heads, shape.head_dim) for _ in range(2))
    pages = _random(job, num_rows, 2, _BLOCK_SIZE, shape.num_kv_heads, shape.head_dim)
    slots = torch.arange(num_rows, device=job.device) * _BLOCK_SIZE
    num_bytes = 2 * (keys.nbytes + values.nbytes) + slots.nbytes
    return Op("store KV", num_rows, 0, num_bytes, lambda: store_kv(pages, slots, keys, values))


def _lora(job: KernelsJob, shape: ModelShape, batch: int, name: str) -> Op:
    """Every row has an adapter of its own."""
    hidden, middle = shape.hidden_size, shape.intermediate_size
    in_size, outs = {
        "q_proj": (hidden, [shape.num_heads * shape.head_dim]),
        "gate_up": (hidden, [middle, middle]),
        "down_proj": (middle, [hidden]),
    }[name]
    tables = [_lora_table(job, in_size, outs) for _ in range(batch)]
    rows = LoraRows.build([LoraSegment(i, i + 1, table) for i, table in enumerate(tables)], job.device)
    assert rows is not None
    columns = [Columns(module, sum(outs[:module]), sum(outs[: module + 1])) for module in range(len(outs))]
    x, output = _random(job, batch, in_size), _random(job, batch, sum(outs))
    matrices = sum(a.nbytes + b.nbytes for table in tables for a, b in table.pairs.values())
    num_bytes = matrices + x.nbytes + 2 * output.nbytes
    call = lambda: add_segmented_lora(output, x, rows, 0, columns)  # noqa: E731
    return Op(f"LoRA, {name}, adapters distinct", batch, 0, num_bytes, call)


def _noise(job: KernelsJob, shape: ModelShape, batch: int) -> Op:
    """The sampler's, where every request has a temperature."""
    logits = torch.zeros(batch, shape.vocab_size, device=job.device)
    keys = torch.zeros(batch, 2, dtype=torch.uint64, device=job.device)
    return Op("noise", batch, 0, 2 * logits.nbytes + keys.nbytes, lambda: add_gumbel_noise(logits, keys))


def _lora_table(job: KernelsJob, in_size: int, outs: list[int]) -> LoraTable:
    pairs = {
        (0, module): (_random(job, job.rank, in_size) / in_size**0.5, _random(job, out, job.rank) * 1e-4)
        for module, out in enumerate(outs)
    }
    return LoraTable.build(pairs, num_layers=1, num_modules=len(outs))


def _copy(job: KernelsJob) -> Op:
    source = torch.zeros(_COPY_BYTES[job.device], dtype=torch.uint8, device=job.device)
    target = torch.empty_like(source)
    return Op("copy", 1, 0, 2 * source.nbytes, lambda: target.copy_(source))


def _random(job: KernelsJob, *size: int) -> Tensor:
    generator = torch.Generator(job.device).manual_seed(0)
    return torch.randn(size, device=job.device, generator=generator, dtype=getattr(torch, job.dtype))


@torch.inference_mode()
def _time(op: Op, job: KernelsJob) -> float:
    """Median seconds."""
    measure = _time_on_gpu if job.device == "cuda" else _time_here
    return median([measure(op) for _ in range(_WARM_UP + job.repetitions)][_WARM_UP:])


def _time_here(op: Op) -> float:
    _overwrite_caches("cpu")
    started = time.perf_counter()
    op.call()
    return time.perf_counter() - started


def _time_on_gpu(op: Op) -> float:
    _overwrite_caches("cuda")
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    op.call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def _overwrite_caches(device: str) -> None:
    torch.empty(_CACHE_BYTES, dtype=torch.uint8, device=device).zero_()


def _report(job: KernelsJob, copy_rate: float, figures: list[OpFigures]) -> Report:
    rows = [
        (
            f.op,
            f.batch,
            f.context,
            f.num_bytes / 2**20,
            1e6 * f.seconds,
            f.bytes_per_second / 1e9,
            100 * f.share_of_copy,
        )
        for f in figures
    ]
    columns = ("op", "batch", "context", "MiB", "µs", "GB/s", "% of copy")
    title = f"{job.shape}, {job.dtype}, {job.device}; a copy moves {copy_rate / 1e9:.1f} GB/s"
    results = {"copy_bytes_per_second": copy_rate, "ops": [dataclasses.asdict(f) for f in figures]}
    settings = {"job": dataclasses.asdict(job)}
    tables = [figures_table(title, columns, rows)]
    return Report("kernels", settings, results, tables, [_panel(figures)], device=job.device)


def _panel(figures: list[OpFigures]) -> Panel:
    decodes = [f for f in figures if f.op == "attention, paired decode"]
    lines = {
        f"batch {batch}": [(f.context, 100 * f.share_of_copy) for f in decodes if f.batch == batch]
        for batch in dict.fromkeys(f.batch for f in decodes)
    }
    return Panel("attention, paired decode", "context", "% of a copy's bandwidth", lines, log_x=True)
