"""Workflows that arrive at a rate, whatever the server's state (the ICaRus paper's load, arXiv 2603.13281).

Arrivals are Poisson. Within a workflow a turn needs the answer to the last one, so it is due when that has come.
"""

import asyncio
import random
import time
from collections.abc import Sequence

from icarus.client import AsyncClient
from icarus_benchmarks.agents.react import ReactWorkflow
from icarus_benchmarks.agents.turns import Turn, take_turn
from icarus_benchmarks.workload import ChainJob

ROUND_ROBIN, SKEWED = "round-robin", "skewed"


def arrivals(count: int, workflows_per_second: float, seed: int) -> list[float]:
    """Seconds at which workflows arrive; the first one at 0."""
    draw = random.Random(f"arrivals-{seed}")
    times = [0.0]
    for _ in range(count - 1):
        times.append(times[-1] + draw.expovariate(workflows_per_second))
    return times


def route(routing: str, models: Sequence[str], workflow: int, turn: int) -> str:
    """Who takes a turn. Round robin: each workflow goes through all, starting one further than the last workflow.
    Skewed: the first specialist gets half of the turns, the others the rest alike."""
    if routing == ROUND_ROBIN or len(models) == 1:
        return models[(workflow + turn) % len(models)]
    draw = random.Random(f"route-{workflow}-{turn}")
    return models[0] if draw.random() < 0.5 else draw.choice(models[1:])


async def run_open_loop(
    client: AsyncClient,
    models: Sequence[str],
    job: ChainJob,
    workflows: Sequence[ReactWorkflow],
    routing: str,
    turns_per_second: float,
    seed: int = 0,
) -> tuple[list[Turn], float]:
    """Every turn, and the seconds from the first arrival to the last end.

    `turns_per_second` is what is offered: workflows arrive at that over `job.num_turns`.
    """
    started = time.perf_counter()
    due = arrivals(len(workflows), turns_per_second / job.num_turns, seed)

    async def run(number: int) -> list[Turn]:
        await asyncio.sleep(max(0.0, started + due[number] - time.perf_counter()))
        return await _run_workflow(client, models, job, workflows[number], routing, number)

    chains = await asyncio.gather(*map(run, range(len(workflows))))
    turns = [turn for chain in chains for turn in chain]
    return turns, max(turn.ended_at for turn in turns) - started


async def _run_workflow(
    client: AsyncClient, models: Sequence[str], job: ChainJob, workflow: ReactWorkflow, routing: str, number: int
) -> list[Turn]:
    context, turns = workflow.context, []
    for index in range(len(workflow.observations) + 1):
        model = route(routing, models, number, index)
        turns.append(await take_turn(client, model, context, job, number, index))
        if index < len(workflow.observations):
            context = [*context, *turns[-1].output, *workflow.observations[index]]
    return turns
