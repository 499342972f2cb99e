"""Answers through the serving path: many turns in flight at a gateway."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from icarus.client import AsyncClient
from icarus.errors import IcarusError, InvalidInputError, NotFoundError, OverloadedError
from icarus.evaluation.report import Answer
from icarus.training.records import Record
from icarus.types import FinishReason

_MAX_REFUSALS = 100


async def answer_all(
    address: str,
    adapter: str | None,
    records: Sequence[Record],
    max_tokens: int,
    in_flight: int,
    advance: Callable[[int], None],
    warn: Callable[[str], None],
    **client_options: Any,
) -> tuple[list[Answer], float]:
    """The answers in order, and the seconds that they took. `advance` is called with 1 for each, `warn` with what is
    left behind at the gateway.

    `adapter`: a name that the gateway serves, or else a folder, which its workers must see too and which is loaded
    meanwhile under a name of its own; None for the base.
    """
    room = asyncio.Semaphore(in_flight)
    async with AsyncClient(address, **client_options) as client, _model(client, adapter, warn) as model:
        started = time.perf_counter()

        async def answer(record: Record) -> Answer:
            async with room:
                result = await _ask(client, model, record, max_tokens)
            advance(1)
            return result

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(answer(record)) for record in records]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the first ended the others
        return [task.result() for task in tasks], time.perf_counter() - started


@asynccontextmanager
async def _model(client: AsyncClient, adapter: str | None, warn: Callable[[str], None]) -> AsyncIterator[str]:
    """The name to ask for. Raises InvalidInputError for what is neither a name nor a folder."""
    models = await client.models()
    if not adapter:
        yield models.base.name
        return
    if adapter in models:
        yield adapter
        return
    folder = Path(adapter)
    if not folder.is_absolute() and not folder.is_dir():  # an absolute one may be the worker's alone
        raise InvalidInputError(
            f"adapter {adapter!r} is neither a name that the gateway serves ({', '.join(models.names)}) nor a folder"
        )
    name = f"evaluated-{secrets.token_hex(4)}"  # this run's alone: nobody else asks for it, or unloads it
    try:
        await client.load_adapter(name, folder.resolve())
        yield name
    finally:
        try:
            await client.unload_adapter(name)
        except NotFoundError:
            pass  # not loaded after all
        except IcarusError as error:  # says nothing of the answers, nor of why there are none
            warn(f"adapter {name!r} may be loaded still, unload it with 'icarus adapters unload {name}': {error}")


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
                min_delta_tokens=max_tokens,
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
