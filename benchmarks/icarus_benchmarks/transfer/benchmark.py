"""`icarus bench transfer`: one process reads another one's blocks, as workers do.

Blocks scattered over both pools, in four ways that take turns: through the transfer thread, by its transport without
the thread, by a bare NIXL loop, and copied within this process (what memory allows). Each takes other blocks, so that
nobody finds what another has just read. Medians.
"""

import ctypes
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from icarus.errors import IntegrityError, UnavailableError
from icarus.transfer.nixl import NixlTransport
from icarus.transfer.thread import TransferThread
from icarus.transfer.transport import ReadState
from icarus_benchmarks.machine import require_device
from icarus_benchmarks.percentiles import median
from icarus_benchmarks.plot import Panel
from icarus_benchmarks.report import Report, figures_table
from icarus_benchmarks.transfer.bare_nixl import BareAgent
from icarus_benchmarks.transfer.pool import random_pool, region_of, wait_for

_SEED = 5
_TIMEOUT_SECONDS = 60.0
_THREAD, _TRANSPORT, _BARE, _COPY = _WAYS = "transfer thread", "transport", "bare NIXL", "memcpy"

Way = Callable[[Sequence[int], Sequence[int]], None]
"""Gets remote blocks into local ones."""


@dataclass(frozen=True)
class TransferJob:
    """What is measured."""

    block_bytes: int
    num_blocks: tuple[int, ...]
    """Of a read."""
    repetitions: int
    device: str
    """Whose memory both pools are in."""


@dataclass(frozen=True)
class TransferFigures:
    """Reads of one size, in one way."""

    way: str
    num_blocks: int
    seconds: float
    bytes_per_second: float


def run(job: TransferJob, progress: Callable[[str], None]) -> Report:
    """Raises ConfigError where the device is not there, UnavailableError where the other process does not come up,
    IntegrityError where bytes differ."""
    require_device(job.device)
    torch.set_num_threads(1)  # others would spin where a read wants the core
    pool_blocks = 2 * max(job.num_blocks)
    content = random_pool(pool_blocks, job.block_bytes, _SEED, job.device)
    pool = torch.zeros_like(content)
    progress(f"two processes with {2 * content.nbytes / 2**20:.0f} MiB between them")
    with _owner(pool_blocks, job) as (metadata, description):
        thread = TransferThread(lambda: NixlTransport(region_of(pool)), _TIMEOUT_SECONDS, max_queued=8)
        thread.start()
        thread.connect("owner", metadata, pool_blocks).result(_TIMEOUT_SECONDS)
        transport = NixlTransport(region_of(pool))
        transport.connect("owner", metadata, pool_blocks)
        bare = BareAgent("benchmark-reader", region_of(pool))
        bare.connect(description)
        reads = (_through_thread(thread), _by_transport(transport), bare.read, _copy(content, pool))
        ways: dict[str, Way] = dict(zip(_WAYS, reads, strict=True))
        figures = [each for count in job.num_blocks for each in _measure(job, count, ways, content, pool, progress)]
        thread.stop()
        transport.close()
    return _report(job, figures)


def _measure(
    job: TransferJob,
    count: int,
    ways: dict[str, Way],
    content: Tensor,
    pool: Tensor,
    progress: Callable[[str], None],
) -> list[TransferFigures]:
    progress(f"reads of {count} blocks")
    order = np.random.default_rng(count)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repetition in range(job.repetitions + 1):
        first = repetition % len(ways)
        for name, way in [*ways.items()][first:] + [*ways.items()][:first]:
            remote, local = (order.permutation(len(pool))[:count].tolist() for _ in range(2))
            pool[local] = 0
            wait_for(pool)
            started = time.perf_counter()
            way(remote, local)
            seconds[name].append(time.perf_counter() - started)
            if not torch.equal(pool[local], content[remote]):
                raise IntegrityError(f"{name}: {count} blocks arrived with other bytes than they were sent with")
    middles = {name: median(values[1:]) for name, values in seconds.items()}
    size = count * job.block_bytes
    return [TransferFigures(name, count, middle, size / middle) for name, middle in middles.items()]


def _through_thread(thread: TransferThread) -> Way:
    def read(remote: Sequence[int], local: Sequence[int]) -> None:
        thread.read("owner", remote, local).result.result(_TIMEOUT_SECONDS)

    return read


def _by_transport(transport: NixlTransport) -> Way:
    def read(remote: Sequence[int], local: Sequence[int]) -> None:
        handle = transport.post_read("owner", remote, local)
        while (state := transport.poll(handle)) is ReadState.PENDING:
            pass
        transport.release(handle)
        if state is not ReadState.DONE:
            raise UnavailableError(f"a read of {len(local)} blocks by the transport ended with {state}")

    return read


def _copy(content: Tensor, pool: Tensor) -> Way:
    size, to, source = pool.shape[1], pool.data_ptr(), content.data_ptr()

    def copy(remote: Sequence[int], local: Sequence[int]) -> None:
        for i, j in zip(remote, local, strict=True):
            ctypes.memmove(to + j * size, source + i * size, size)

    def copy_on_gpu(remote: Sequence[int], local: Sequence[int]) -> None:
        for i, j in zip(remote, local, strict=True):
            pool[j].copy_(content[i])
        wait_for(pool)

    return copy_on_gpu if pool.is_cuda else copy


@contextmanager
def _owner(num_blocks: int, job: TransferJob) -> Iterator[tuple[bytes, str]]:
    """Its pool's transfer metadata and its bare agent's description."""
    answers, writing = os.pipe()
    arguments = map(str, (num_blocks, job.block_bytes, _SEED, job.device, writing))
    command = [sys.executable, "-m", "icarus_benchmarks.transfer.owner", *arguments]
    with (
        open(answers) as lines,
        subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[writing], text=True) as process,
    ):
        assert process.stdin
        os.close(writing)
        try:
            metadata, description = lines.readline().strip(), lines.readline().strip()
            if not description:
                raise UnavailableError("the process that owns the blocks did not come up; see its message above")
            yield bytes.fromhex(metadata), description
        finally:
            process.stdin.close()


def _report(job: TransferJob, figures: Sequence[TransferFigures]) -> Report:
    rates = {(each.way, each.num_blocks): each.bytes_per_second for each in figures}
    rows = [
        (
            count,
            count * job.block_bytes / 2**20,
            *(rates[way, count] / 1e9 for way in _WAYS),
            *(rates[way, count] / rates[_BARE, count] for way in (_THREAD, _TRANSPORT)),
        )
        for count in job.num_blocks
    ]
    columns = ("blocks", "MiB", *(f"{way} GB/s" for way in _WAYS), "thread / bare", "transport / bare")
    lines = {way: [(count, rates[way, count] / 1e9) for count in job.num_blocks] for way in _WAYS}
    panel = Panel(f"reads of {job.block_bytes:,} bytes a block", "blocks", "GB/s", lines, log_x=True)
    results = {
        "reads": [dataclasses.asdict(each) for each in figures],
        "thread_over_bare": {str(row[0]): row[-2] for row in rows},
        "transport_over_bare": {str(row[0]): row[-1] for row in rows},
    }
    table = figures_table("blocks of another process", columns, rows)
    return Report("transfer", {"job": dataclasses.asdict(job)}, results, [table], [panel], device=job.device)
