"""`icarus bench`: runs one benchmark, shows its figures and writes them down."""

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from icarus.cli.bench.flags import PEER_SERVERS
from icarus.cli.compute_threads import set_up_threads
from icarus.cli.flags import read_config
from icarus.cli.output_file import writable
from icarus.cli.sigterm import sigterm_exits
from icarus.errors import InvalidInputError

if TYPE_CHECKING:
    from icarus_benchmarks.report import Report

Progress = Callable[[str], None]
_IN_PROCESS = ("engine",)
"""Benchmarks that compute in this process, as a worker does."""


def run(args: argparse.Namespace) -> int:
    if args.benchmark in _IN_PROCESS:
        set_up_threads(read_config(args).engine)
    from icarus_benchmarks.plot import require_plotting

    if args.plot:
        require_plotting(Path(args.plot))
    with (
        sigterm_exits(),  # a time limit's way to end it, and there may be a model to remove
        writable("--json", args.json) as json_path,
        writable("--plot", args.plot) as plot_path,
    ):
        return _run(args, json_path, plot_path)


def _run(args: argparse.Namespace, json_path: Path | None, plot_path: Path | None) -> int:
    from icarus_benchmarks.machine import describe_machine
    from icarus_benchmarks.plot import save_panels
    from icarus_benchmarks.report import write_json

    console = Console(highlight=False, markup=False)
    report = _BENCHMARKS[args.benchmark](args, lambda line: console.print(line, style="dim"))
    for table in report.tables:
        console.print(table)
        console.print()
    for note in report.notes:
        console.print(f"note: {note}")
    if json_path:
        command = shlex.join(["icarus", *sys.argv[1:]])
        write_json(json_path, report, command, describe_machine(report.device))
        console.print(f"every figure is in {json_path}")
    if plot_path:
        save_panels(plot_path, f"icarus bench {args.benchmark}", report.panels)
        console.print(f"the curves are in {plot_path}")
    return 0


def _engine(args: argparse.Namespace, progress: Progress) -> "Report":
    from icarus_benchmarks.engine.benchmark import run
    from icarus_benchmarks.engine.figures import EngineJob

    job = EngineJob(
        prefill_tokens=args.prefill_tokens,
        batches=args.batches,
        decode_context=args.decode_context,
        paired_batch=args.paired_batch,
        paired_context=args.paired_context,
        num_steps=args.steps,
        repetitions=args.repetitions,
        num_specialists=args.specialists,
        rank=args.rank,
        random_weights=args.random_weights,
    )
    return run(job, read_config(args), progress)


def _agents(args: argparse.Namespace, progress: Progress) -> "Report":
    from icarus_benchmarks.agents.benchmark import run
    from icarus_benchmarks.agents.cases import AgentsJob
    from icarus_benchmarks.agents.open_loop import ROUND_ROBIN, SKEWED
    from icarus_benchmarks.workload import ChainJob

    if args.num_prefill < 0:
        raise InvalidInputError(f"--num-prefill is {args.num_prefill}; it is 0 or more")
    lengths = {
        "context_tokens": args.context_tokens,
        "output_tokens": args.output_tokens,
        "num_turns": args.turns,
        "min_delta_tokens": args.min_delta_tokens,
    }
    open_workflows = args.open_workflows or (16 if args.full else 5)
    job = AgentsJob(
        num_specialists=args.agents or ((1, 2, 4, 8) if args.full else (1, 8)),
        closed=ChainJob(num_workflows=args.workflows, observation_tokens=args.observation_tokens, **lengths),
        open=ChainJob(num_workflows=open_workflows, observation_tokens=args.open_observation_tokens, **lengths),
        rates=args.rates or ((0.5, 1.0, 2.0, 4.0, 8.0) if args.full else (1.0, 2.0, 4.0)),
        routings=(ROUND_ROBIN, SKEWED) if args.full else (ROUND_ROBIN,),
        data=Path(args.data) if args.data else None,
        evicting_specialists=args.evicting_agents or ((2, 4) if args.full else (4,)),
        evicts_in_open_loop=args.full,
        max_kv_bytes=int(args.kv_gib * 2**30),
        num_prefill=args.num_prefill,
        num_decode=args.num_decode,
        rank=args.rank,
        random_weights=args.random_weights,
    )
    return run(job, read_config(args), progress, args.startup_seconds)


def _transfer(args: argparse.Namespace, progress: Progress) -> "Report":
    from icarus_benchmarks.transfer.benchmark import TransferJob, run

    return run(TransferJob(args.block_bytes, args.blocks, args.repetitions, args.device), progress)


def _peer(args: argparse.Namespace, progress: Progress) -> "Report":
    from icarus_benchmarks.peer.benchmark import PeerJob, run
    from icarus_benchmarks.peer.report import DECODE_ONLY, FAST, FULL, NO_LORA
    from icarus_benchmarks.peer.vllm_server import PeerFolders

    servers = dict(zip(PEER_SERVERS, (FAST, NO_LORA, DECODE_ONLY, FULL), strict=True))
    job = PeerJob(
        folders=PeerFolders(Path(args.peer).resolve(), Path(args.installed).resolve()),
        num_workflows=args.workflows,
        num_turns=args.turns,
        kv_bytes=int(args.kv_gib * 2**30),
        servers=tuple(servers[name] for name in args.server or PEER_SERVERS),
    )
    return run(job, read_config(args), progress, args.startup_seconds)


def _kernels(args: argparse.Namespace, progress: Progress) -> "Report":
    from icarus_benchmarks.kernels import KernelsJob, run

    job = KernelsJob(
        device=args.device,
        shape=args.shape,
        dtype=args.dtype,
        batches=args.batches,
        contexts=args.contexts,
        rank=args.rank,
        repetitions=args.repetitions,
    )
    return run(job, progress)


_BENCHMARKS: dict[str, Callable[[argparse.Namespace, Progress], "Report"]] = {
    "engine": _engine,
    "agents": _agents,
    "transfer": _transfer,
    "peer": _peer,
    "kernels": _kernels,
}
