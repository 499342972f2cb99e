"""Answers through the serving path: many turns in flight at a gateway, which is started here unless there is one."""

import argparse
import asyncio
import dataclasses
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from icarus.cli.flags import read_config
from icarus.cli.local import LocalCluster
from icarus.client import AsyncClient
from icarus.config import Config
from icarus.errors import IcarusError, OverloadedError
from icarus.training.evaluate import Answer
from icarus.training.records import Record
from icarus.types import FinishReason

_NAME = "evaluated"
_MAX_REFUSALS = 100


def answer_all(
    args: argparse.Namespace, records: Sequence[Record], note: Callable[[str], None], advance: Callable[[int], None]
) -> tuple[list[Answer], float]:
    """The answers in order, and the seconds that they took. `advance` is called with 1 for each."""
    if args.gateway:
        return asyncio.run(_answer(args.gateway, args, records, advance))
    adapters = [[f"{_NAME}={Path(args.adapter).resolve()}"]] if args.adapter else [[]]
    with LocalCluster(_config(args), decode_adapters=adapters, num_prefill=0, progress=note) as cluster:
        return asyncio.run(_answer(cluster.address, args, records, advance))


def _config(args: argparse.Namespace) -> Config:
    config = read_config(args)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, path=args.model),
        gateway=dataclasses.replace(config.gateway, address="127.0.0.1:0", worker_address=""),
    )


async def _answer(
    address: str, args: argparse.Namespace, records: Sequence[Record], advance: Callable[[int], None]
) -> tuple[list[Answer], float]:
    room = asyncio.Semaphore(args.in_flight)
    async with AsyncClient(address) as client, _model(client, args) as model:
        started = time.perf_counter()

        async def answer(record: Record) -> Answer:
            async with room:
                result = await _ask(client, model, record, args.max_tokens)
            advance(1)
            return result

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(answer(record)) for record in records]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the first ended the others
        return [task.result() for task in tasks], time.perf_counter() - started


@asynccontextmanager
async def _model(client: AsyncClient, args: argparse.Namespace) -> AsyncIterator[str]:
    """The name to ask for. An adapter's folder is loaded for the time of the evaluation, unless a name is served."""
    models = await client.models()
    if not args.adapter:
        yield models.base.name
        return
    for name in (args.adapter, _NAME):
        if name in models:
            yield name
            return
    folder = str(Path(args.adapter).resolve())
    name = f"{_NAME}-{hashlib.sha256(folder.encode()).hexdigest()[:8]}"
    loaded = await client.load_adapter(name, folder)
    try:
        yield loaded.name
    finally:
        await client.unload_adapter(loaded.name)


async def _ask(client: AsyncClient, model: str, record: Record, max_tokens: int) -> Answer:
    """Waits and asks again where the workers have no room."""
    is_text = isinstance(record.prompt, str)
    for refusal in range(_MAX_REFUSALS + 1):
        try:
            turn = client.generate(
                model,
                record.prompt if isinstance(record.prompt, str) else None,
                messages=None if is_text else record.prompt,  # pyright: ignore[reportArgumentType]
                max_tokens=max_tokens,
                temperature=0.0,
            )
            result = await turn.result()
        except OverloadedError as error:
            if refusal == _MAX_REFUSALS:
                raise
            await asyncio.sleep(error.retry_delay_seconds)
            continue
        except IcarusError as error:
            raise type(error)(f"the example in line {record.line}: {error}") from None
        finished = result.finish_reason is FinishReason.STOP
        return Answer(result.text, result.usage.prompt_tokens, len(result.token_ids), finished)
    raise AssertionError("the loop returns or raises")
