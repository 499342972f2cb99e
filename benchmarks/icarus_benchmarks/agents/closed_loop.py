"""Workflows that run side by side; each sends its next turn when it has the answer to the last one."""

import asyncio
import time
from collections.abc import Sequence

from icarus.client import AsyncClient
from icarus_benchmarks.agents.turns import Turn, take_turn
from icarus_benchmarks.workload import ChainJob, random_ids


async def run_closed_loop(
    client: AsyncClient, models: Sequence[str], job: ChainJob, vocab_size: int
) -> tuple[list[Turn], float]:
    """Every turn, and the seconds from the first one's start to the last one's end."""
    started = time.perf_counter()
    turns = await asyncio.gather(
        *(_run_workflow(client, models, job, vocab_size, workflow) for workflow in range(job.num_workflows))
    )
    return [turn for chain in turns for turn in chain], time.perf_counter() - started


async def _run_workflow(
    client: AsyncClient, models: Sequence[str], job: ChainJob, vocab_size: int, workflow: int
) -> list[Turn]:
    context = random_ids(("workflow", workflow), job.context_tokens, vocab_size)
    turns: list[Turn] = []
    for index in range(job.num_turns):
        turns.append(await take_turn(client, models[index % len(models)], context, job, workflow, index))
        observation = random_ids(("observation", workflow, index), job.observation_tokens, vocab_size)
        context = [*context, *turns[-1].output, *observation]
    return turns
