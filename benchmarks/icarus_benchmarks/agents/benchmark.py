"""`icarus bench agents`: N specialists over growing contexts, one KV cache against one each.

Cases that differ in shared or private alone follow each other on the same workers, each under a tenant of its own, so
that none finds what another left.
"""

import asyncio
import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from icarus.cli.local import LocalCluster, on_a_free_port
from icarus.client import AsyncClient
from icarus.config import Config
from icarus.model.config import ModelConfig
from icarus.types import AdapterMode
from icarus_benchmarks.agents.cache_use import cache_use, settled
from icarus_benchmarks.agents.cases import AgentsJob, Case, CaseFigures, Stage, stages
from icarus_benchmarks.agents.closed_loop import run_closed_loop
from icarus_benchmarks.agents.open_loop import run_open_loop
from icarus_benchmarks.agents.react import ReactData, ReactWorkflow, make_workflow, read_react
from icarus_benchmarks.agents.report import report
from icarus_benchmarks.agents.turns import Turn, sum_up
from icarus_benchmarks.kv_size import block_bytes
from icarus_benchmarks.model_folder import model_folder
from icarus_benchmarks.report import Report
from icarus_benchmarks.specialists import write_specialists
from icarus_benchmarks.workload import ChainJob


@dataclass(frozen=True)
class Scene:
    """What cases play with."""

    vocab_size: int
    workflows: Sequence[ReactWorkflow]
    job: AgentsJob


def run(job: AgentsJob, config: Config, progress: Callable[[str], None], startup_seconds: float) -> Report:
    """Starts clusters one after the other and plays every case. Raises InvalidInputError for unusable data."""
    data = read_react(job.data) if job.data else None
    with model_folder(config.model.path, job.random_weights, progress) as folder:
        name = job.random_weights or config.model.served_name
        config = dataclasses.replace(
            config,
            model=dataclasses.replace(config.model, path=str(folder), name=name),
            gateway=on_a_free_port(config.gateway),
        )
        scene = Scene(ModelConfig.from_folder(folder).vocab_size, _workflows(job, data, folder), job)
        figures = _run_stages(scene, config, progress, startup_seconds)
    settings = {"job": dataclasses.asdict(job), "config": dataclasses.asdict(config)}
    return report(figures, settings, has_open_loop=data is not None, device=config.model.device)


def _run_stages(
    scene: Scene, config: Config, progress: Callable[[str], None], startup_seconds: float
) -> list[CaseFigures]:
    found = stages(scene.job)
    most = max(case.num_specialists for stage in found for case in stage.cases)
    figures: list[CaseFigures] = []
    with tempfile.TemporaryDirectory(prefix="icarus-bench-") as adapters:
        specialists = write_specialists(Path(adapters), Path(config.model.path), most, scene.job.rank)
        for stage in found:
            figures += _run_stage(stage, scene, config, specialists, progress, startup_seconds)
    return figures


def _workflows(job: AgentsJob, data: ReactData | None, folder: Path) -> list[ReactWorkflow]:
    if data is None:
        return []
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def tokenise(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    lengths = job.open.num_turns, job.open.context_tokens, job.open.observation_tokens
    return [make_workflow(data, tokenise, number, *lengths) for number in range(job.open.num_workflows)]


def _run_stage(
    stage: Stage,
    scene: Scene,
    config: Config,
    specialists: dict[str, Path],
    progress: Callable[[str], None],
    startup_seconds: float,
) -> list[CaseFigures]:
    most = max(case.num_specialists for case in stage.cases)
    shared = [f"{name}={folder}" for name, folder in [*specialists.items()][:most]]
    private = [f"{_private(name)}={folder}:private" for name, folder in [*specialists.items()][:most]]
    cluster = LocalCluster(
        _with_pool(config, stage, scene.job),
        decode_adapters=[[*shared, *private]] * scene.job.num_decode,
        prefill_adapters=private,
        num_prefill=scene.job.num_prefill,
        startup_seconds=startup_seconds,
    )
    with cluster:
        return asyncio.run(_run_cases(stage.cases, scene, cluster.address, list(specialists)[:most], progress))


def _with_pool(config: Config, stage: Stage, job: AgentsJob) -> Config:
    model = ModelConfig.from_folder(config.model.path)
    num_blocks = min(
        -(-stage.kv_tokens // config.cache.block_size),
        job.max_kv_bytes // block_bytes(model, config),
    )
    return dataclasses.replace(config, cache=dataclasses.replace(config.cache, num_blocks=num_blocks))


def _private(name: str) -> str:
    return f"{name}-private"


async def _run_cases(
    cases: Sequence[Case], scene: Scene, address: str, names: Sequence[str], progress: Callable[[str], None]
) -> list[CaseFigures]:
    await _warm_up(address, scene, names)
    figures = []
    for case in cases:
        progress(case.title)
        figures.append(await _run_case(case, scene, address, names))
    return figures


async def _warm_up(address: str, scene: Scene, names: Sequence[str]) -> None:
    """Every specialist once, then batches of every size, for which a GPU records graphs. On short contexts, not
    counted."""
    models = [*names, *map(_private, names)]
    most = max(scene.job.closed.num_workflows, scene.job.open.num_workflows)
    async with AsyncClient(address, tenant="warm-up") as client:
        await run_closed_loop(client, models, ChainJob(2, len(models), 64, 2, 2), scene.vocab_size)
        for size in (*(2**power for power in range((most - 1).bit_length())), most):
            for model in (names[0], _private(names[0])):
                await run_closed_loop(client, [model], ChainJob(size, 1, 64, 4, 2), scene.vocab_size)


async def _run_case(case: Case, scene: Scene, address: str, names: Sequence[str]) -> CaseFigures:
    models = list(names[: case.num_specialists])
    if case.mode is AdapterMode.PRIVATE:
        models = list(map(_private, models))
    async with AsyncClient(address, tenant=case.title) as client:
        before = await settled(client)
        turns, seconds = await _play(client, case, scene, models)
        after = await settled(client)
    return CaseFigures(case, sum_up(turns, seconds), cache_use(before, after))


async def _play(client: AsyncClient, case: Case, scene: Scene, models: Sequence[str]) -> tuple[list[Turn], float]:
    if case.rate is None:
        return await run_closed_loop(client, models, scene.job.closed, scene.vocab_size)
    return await run_open_loop(client, models, scene.job.open, scene.workflows, case.routing, case.rate)
