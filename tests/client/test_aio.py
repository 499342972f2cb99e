"""The client for asyncio against a scripted gateway: what differs from the one for threads."""

import ast
import asyncio
import inspect
from pathlib import Path

import pytest
from client.test_sync import NOT_UNICODE
from waiting import eventually

from icarus.client import AsyncClient, AsyncSession, AsyncTurnStream, Client, Delta, Session, TurnStream, aio, sync
from icarus.client.write_sync import sync_of
from icarus.errors import FailedPreconditionError, InvalidInputError, NotFoundError, OverloadedError, UnavailableError
from icarus.types import AdapterMode, FinishReason


@pytest.fixture
async def client(gateway):
    async with AsyncClient(gateway.address, tenant="acme", timeout=10) as client:
        yield client


@pytest.mark.parametrize(
    ("sync", "aio"), [(Client, AsyncClient), (Session, AsyncSession), (TurnStream, AsyncTurnStream)]
)
def test_both_clients_have_the_same_surface(sync, aio):
    def surface(cls):
        methods = inspect.getmembers(cls, inspect.isfunction)
        public = [(name, method) for name, method in methods if name[0] != "_" and name != "aclose"]
        return {name: list(inspect.signature(method).parameters) for name, method in public}

    assert surface(sync) == surface(aio) and surface(sync)


def test_the_client_for_threads_is_what_make_client_writes():
    written, source = (Path(inspect.getfile(module)).read_text() for module in (sync, aio))
    assert ast.dump(ast.parse(sync_of(source))) == ast.dump(ast.parse(written)), "run 'make client'"


async def test_stream_gives_deltas_then_the_result(client):
    stream = client.generate("alpha", token_ids=[5, 6], seed=3)
    assert [delta async for delta in stream] == [Delta((5,), "<5>"), Delta((6,), "<6>")]
    result = await stream.result()
    assert (result.text, result.finish_reason, result.seed) == ("<5><6>", FinishReason.LENGTH, 3)


async def test_trouble_after_tokens_keeps_them(client):
    stream = client.generate("alpha", "late trouble")
    with pytest.raises(OverloadedError):
        await stream.result()
    with pytest.raises(OverloadedError):
        await stream.result()
    assert stream.token_ids == (1, 2, 3)


async def test_leaving_early_cancels_the_turn(client, gateway):
    async with client.generate("alpha", "endless", turn_id="t7") as stream:
        assert (await anext(stream)).token_ids == (1,)
    await eventually(lambda: gateway.cancelled == ["t7"])
    with pytest.raises(FailedPreconditionError, match="t7 was cancelled"):
        await stream.result()


async def test_cancel_from_another_task_ends_the_iteration(client, gateway):
    stream = client.generate("alpha", "endless")
    reader = asyncio.create_task(stream.result())
    await eventually(lambda: len(stream.token_ids) == 3)
    stream.cancel()
    with pytest.raises(FailedPreconditionError):
        await reader
    assert stream.finish_reason is FinishReason.CANCELLED
    await eventually(lambda: gateway.cancelled == [stream.turn_id])


async def test_cancelling_the_task_cancels_the_turn(client, gateway):
    stream = client.generate("alpha", "endless")
    reader = asyncio.create_task(stream.result())
    await eventually(lambda: len(stream.token_ids) == 3)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await eventually(lambda: gateway.cancelled == [stream.turn_id])
    assert stream.finish_reason is FinishReason.CANCELLED


@pytest.mark.parametrize(("name", "call"), NOT_UNICODE)
async def test_text_that_is_not_unicode_is_refused_by_name(client, gateway, name, call):
    with pytest.raises(InvalidInputError, match=rf"^{name} .*\\ud83d"):
        await call(client)
    assert gateway.requests == []


async def test_two_turns_at_once(client):
    first, second = client.generate("alpha", token_ids=[1]), client.generate("alpha", token_ids=[2])
    results = await asyncio.gather(second.result(), first.result())
    assert [result.token_ids for result in results] == [(2,), (1,)]


async def test_session_and_models(client):
    session = await client.create_session(token_ids=[4])
    assert (await session.append(token_ids=[5])).num_tokens == 2
    assert (await session.generate("alpha").result()).token_ids == (4, 5)
    assert await client.session(session.session_id).token_ids() == (4, 5)
    assert (await session.get()).num_turns == 1
    await session.delete()
    with pytest.raises(NotFoundError):
        await session.token_ids()
    model = await client.load_adapter("alpha", "/a", mode=AdapterMode.SHARED)
    assert model.mode is AdapterMode.SHARED
    assert [model.name for model in await client.models()] == ["base", "alpha"]
    await client.unload_adapter("alpha")
    assert (await client.cluster()).block_size == 16


async def test_no_gateway_is_unavailable():
    async with AsyncClient("127.0.0.1:1", timeout=5) as nobody:
        with pytest.raises(UnavailableError):
            await nobody.cluster()
        with pytest.raises(UnavailableError):
            await nobody.generate("alpha", "hi").result()
