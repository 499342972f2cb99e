"""`icarus bench peer`: vLLM and Icarus under the same load, one after the other on the same machine.

The load is the peer's own `workload.py`, which knows nothing of either: a Python of the peer's drives vLLM, ours drives
us through `workload_backend/icarus_backend.py`. Its agents job is W workflows of 1,024 tokens at first and 8 turns of
32 tokens, each by another of eight specialists, 64 tokens between them.

Both have the same model and the same bytes of KV. vLLM serves adapters on all seven projections, as its users would; we
serve the same ones without k_proj and v_proj, which is what our method takes. They are random, so nothing was trained
for either way of serving; the copies that we load say that they are shared (`icarus.json`).
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from icarus.adapters.metadata import AdapterMetadata, write_metadata
from icarus.cli.local import LocalCluster, on_a_free_port
from icarus.config import Config
from icarus.errors import UnavailableError
from icarus.model.config import ModelConfig
from icarus.model.digest import base_digest
from icarus.types import AdapterMode
from icarus_benchmarks.kv_size import block_bytes
from icarus_benchmarks.peer.report import DECODE_ONLY, FAST, FULL, NO_LORA, Run, report
from icarus_benchmarks.peer.vllm_server import PeerFolders, vllm_server
from icarus_benchmarks.report import Report

_BASE, _NUM_SPECIALISTS = "base", 8
_BACKEND_FOLDER = Path(__file__).parent / "workload_backend"
_BACKEND = "icarus_backend:IcarusBackend"
_RAW_BASE = ("prefill:base", "decode:base:1", "decode:base:8")
_RAW_SPECIALISTS = ("prefill:a0", "decode:mix:8")


@dataclass(frozen=True)
class PeerJob:
    """What is measured."""

    folders: PeerFolders
    num_workflows: int
    num_turns: int
    kv_bytes: int
    """As serve.sh gives vLLM."""
    servers: tuple[str, ...]
    """Of FAST, NO_LORA, DECODE_ONLY, FULL; in this order."""


def run(job: PeerJob, config: Config, progress: Callable[[str], None], startup_seconds: float) -> Report:
    """A server that fails is left out, and a note says why.

    Raises InvalidInputError where the peer is not there, UnavailableError where every server fails.
    """
    job.folders.check()
    runs: list[Run] = []
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="icarus-bench-") as folder:
        adapters = _copy_adapters(job.folders.installed, Path(folder))
        for server in job.servers:
            jobs = _jobs(server, job)
            progress(f"{server}: {' '.join(jobs)}")
            try:
                if server in (FAST, NO_LORA):
                    runs += _run_vllm(server, jobs, job.folders, Path(folder))
                else:
                    runs += _run_icarus(
                        server, jobs, job, _config(config, job, server), adapters, Path(folder), startup_seconds
                    )
            except UnavailableError as error:
                failures.append(f"{server} was not measured: {error}")
                progress(failures[-1])
    if not runs:
        raise UnavailableError("; ".join(failures))
    settings = {"job": dataclasses.asdict(job), "config": dataclasses.asdict(_config(config, job, DECODE_ONLY))}
    return report(runs, settings, failures)


def _jobs(server: str, job: PeerJob) -> tuple[str, ...]:
    """As `workload.py` takes them."""
    shape = f"{job.num_workflows}:{job.num_turns}"
    agents = f"agents:multi:multi:{shape}"
    return {
        FAST: (*_RAW_SPECIALISTS, agents),
        NO_LORA: (*_RAW_BASE, f"agents:base:base:{shape}"),
        DECODE_ONLY: (*_RAW_BASE, *_RAW_SPECIALISTS, agents),
        FULL: ("prefill:a0", agents),  # a batch's first answer may end before its last prompt is prefilled elsewhere
    }[server]


def _run_vllm(server: str, jobs: Sequence[str], folders: PeerFolders, folder: Path) -> list[Run]:
    with vllm_server(folders, server.removeprefix("vLLM "), folder / "vllm.log") as vllm:
        arguments = ["--url", vllm.url, "--server-pid", str(vllm.pid)]
        return _drive(server, [str(folders.python), str(folders.workload), *arguments], jobs, {}, folder)


def _run_icarus(
    server: str,
    jobs: Sequence[str],
    job: PeerJob,
    config: Config,
    adapters: Sequence[str],
    folder: Path,
    startup_seconds: float,
) -> list[Run]:
    cluster = LocalCluster(
        config, decode_adapters=[adapters], num_prefill=int(server == FULL), startup_seconds=startup_seconds
    )
    with cluster:
        backend = ["--backend", _BACKEND, "--url", cluster.address, "--server-pid", str(os.getpid())]
        path = {"PYTHONPATH": os.pathsep.join([str(_BACKEND_FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])])}
        return _drive(server, [sys.executable, str(job.folders.workload), *backend], jobs, path, folder)


def _drive(
    server: str, command: Sequence[str], jobs: Sequence[str], environment: dict[str, str], folder: Path
) -> list[Run]:
    out = folder / "results.jsonl"
    out.unlink(missing_ok=True)
    done = subprocess.run(
        [*command, "--label", server, "--out", str(out), *jobs],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise UnavailableError(f"workload.py against {server} ended with exit code {done.returncode}: {last}")
    results = [json.loads(line) for line in out.read_text().splitlines()]
    return [Run(server, name, figures) for name, figures in zip(jobs, results, strict=True)]


def _copy_adapters(installed: Path, folder: Path) -> list[str]:
    """`NAME=FOLDER` of each, with our metadata beside PEFT's files."""
    metadata = AdapterMetadata(AdapterMode.SHARED, base_digest(installed / "model"))
    entries = []
    for name in (f"a{index}" for index in range(_NUM_SPECIALISTS)):
        copy = shutil.copytree(installed / "lora_nokv" / name, folder / name)
        write_metadata(copy, metadata)
        entries.append(f"{name}={copy}")
    return entries


def _config(config: Config, job: PeerJob, server: str) -> Config:
    """The workers of a server have the job's bytes of KV together."""
    folder = job.folders.installed / "model"
    num_workers = 2 if server == FULL else 1
    num_blocks = job.kv_bytes // num_workers // block_bytes(ModelConfig.from_folder(folder), config)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, path=str(folder), name=_BASE),
        cache=dataclasses.replace(config.cache, num_blocks=num_blocks),
        gateway=on_a_free_port(config.gateway),
    )
