"""Turns that nobody reads to their end, and clients that are closed."""

import asyncio
import gc
import threading
import time

import pytest
from waiting import eventually, wait_until

from icarus.client import AsyncClient, Client, RetryPolicy
from icarus.errors import DeadlineError, FailedPreconditionError
from icarus.types import FinishReason


def test_a_loop_that_is_left_ends_the_turn(gateway):
    with Client(gateway.address) as client:
        for delta in client.generate("alpha", "endless", turn_id="t1"):
            assert delta.token_ids == (1,)
            break
        wait_until(lambda: gateway.cancelled == ["t1"])


def test_what_the_collector_finds_is_let_go_in_another_thread(gateway, monkeypatch):
    """It may run where gRPC holds a lock: see `client/reaper.py`."""
    threads = []
    with Client(gateway.address) as client:
        stream = client.generate("alpha", "endless", turn_id="t1")
        next(stream)
        give_up = client._connection.give_up
        monkeypatch.setattr(
            client._connection, "give_up", lambda *a: threads.append(threading.current_thread()) or give_up(*a)
        )
        del stream
        wait_until(lambda: gateway.cancelled == ["t1"])
    assert threads and threading.current_thread() not in threads


def test_a_client_that_is_dropped_leaves_no_thread(gateway):
    before = threading.active_count()
    client = Client(gateway.address)
    assert threading.active_count() == before + 1
    del client
    gc.collect()
    wait_until(lambda: threading.active_count() == before)


async def test_a_loop_that_is_left_ends_the_turn_for_asyncio(gateway):
    async with AsyncClient(gateway.address) as client:
        async for _ in client.generate("alpha", "endless", turn_id="t1"):
            break
        await eventually(lambda: gateway.cancelled == ["t1"])


async def test_a_stream_may_be_dropped_in_another_thread(gateway):
    async with AsyncClient(gateway.address) as client:
        stream = client.generate("alpha", "endless", turn_id="t1")
        await anext(stream)
        holder = [stream]
        del stream
        await asyncio.to_thread(holder.clear)
        await eventually(lambda: gateway.cancelled == ["t1"])


def test_a_stream_may_be_dropped_after_the_loop(gateway):
    async def leave():
        client = AsyncClient(gateway.address)
        stream = client.generate("alpha", "endless")
        await anext(stream)
        return stream

    stream = asyncio.run(leave())
    del stream
    gc.collect()


def test_a_turn_that_ended_is_not_cancelled_when_it_is_dropped(gateway):
    with Client(gateway.address) as client:
        stream = client.generate("alpha", "hi")
        stream.result()
        assert stream.is_whole
        del stream
        gc.collect()
        client.models()
    assert "CancelTurn" not in [method for method, _ in gateway.calls]


@pytest.mark.parametrize("retry", [RetryPolicy(), RetryPolicy(retries=0)])
def test_leaving_with_tells_of_a_turn_that_had_finished(gateway, retry):
    """The gateway runs ahead of who reads slowly: the turn counts, and its reader must know."""
    with Client(gateway.address, retry=retry) as client:
        with client.generate("alpha", "hi", turn_id="t1", seed=7) as stream:
            next(stream)
            wait_until(lambda: gateway.has_finished("t1"))
        assert stream.finish_reason is FinishReason.LENGTH and stream.seed == 7 and not stream.is_whole
        assert stream.usage is not None and stream.usage.completion_tokens == 3 and stream.token_ids == (1,)
        assert list(stream) == []
        with pytest.raises(FailedPreconditionError, match="what had arrived"):
            stream.result()


def test_leaving_with_tells_what_became_of_a_turn_past_its_deadline(gateway):
    gateway.pause_seconds = 0.3
    with Client(gateway.address) as client:
        with pytest.raises(DeadlineError), client.generate("alpha", "slow", timeout=0.45) as stream:
            for _ in stream:
                pass
        assert gateway.cancelled == [stream.turn_id] and stream.finish_reason is None
        with pytest.raises(DeadlineError), client.generate("alpha", "committing", timeout=0.3) as stream:
            stream.result()
        assert stream.finish_reason is FinishReason.LENGTH and stream.usage is not None and not stream.is_whole
        with pytest.raises(DeadlineError):
            stream.result()


async def test_leaving_with_tells_of_a_turn_that_had_finished_for_asyncio(gateway):
    async with AsyncClient(gateway.address) as client:
        async with client.generate("alpha", "hi", turn_id="t1") as stream:
            await anext(stream)
            await eventually(lambda: gateway.has_finished("t1"))
        assert stream.finish_reason is FinishReason.LENGTH and stream.token_ids == (1,)
        assert [delta async for delta in stream] == []
        with pytest.raises(FailedPreconditionError, match="what had arrived"):
            await stream.result()


def test_leaving_with_ends_the_turn_and_waits_for_it(gateway):
    with Client(gateway.address) as client:
        with client.generate("alpha", "endless", turn_id="t1") as stream:
            next(stream)
        assert gateway.cancelled == ["t1"] and stream.finish_reason is FinishReason.CANCELLED


async def test_leaving_with_ends_the_turn_and_waits_for_it_for_asyncio(gateway):
    async with AsyncClient(gateway.address) as client:
        async with client.generate("alpha", "endless", turn_id="t1") as stream:
            await anext(stream)
        assert gateway.cancelled == ["t1"] and stream.finish_reason is FinishReason.CANCELLED


def test_leaving_with_waits_for_a_thread_that_cancels(gateway, monkeypatch):
    """As `icarus generate` does on Ctrl-C: the client closes while the other thread is about to tell the gateway."""
    with Client(gateway.address) as client:
        give_up = client._connection.give_up
        monkeypatch.setattr(client._connection, "give_up", lambda *a: time.sleep(0.3) or give_up(*a))
        with client.create_session(token_ids=range(40)).generate("alpha", "slow") as stream:
            next(stream)
            thread = threading.Thread(target=stream.cancel)
            thread.start()
            assert len(list(stream)) < 39
    assert gateway.cancelled == [stream.turn_id]
    thread.join()


def test_closing_ends_the_turns(gateway):
    client = Client(gateway.address)
    stream = client.generate("alpha", "endless", turn_id="t1")
    next(stream)
    client.close()
    wait_until(lambda: gateway.cancelled == ["t1"])
    assert "CancelTurn" in [method for method, _ in gateway.calls]
    assert stream.finish_reason is FinishReason.CANCELLED and list(stream) == []
    client.close()


def test_an_error_through_with_ends_the_turns(gateway):
    with pytest.raises(RuntimeError), Client(gateway.address) as client:
        stream = client.create_session(token_ids=[1]).generate("alpha", "endless", turn_id="t1")
        next(stream)
        raise RuntimeError("the program's own")
    wait_until(lambda: gateway.cancelled == ["t1"])


async def test_closing_ends_the_turns_for_asyncio(gateway):
    client = AsyncClient(gateway.address)
    stream = client.generate("alpha", "endless", turn_id="t1")
    await anext(stream)
    reader = asyncio.create_task(stream.result())
    await asyncio.sleep(0)
    await client.close()
    await eventually(lambda: gateway.cancelled == ["t1"])
    assert "CancelTurn" in [method for method, _ in gateway.calls]
    with pytest.raises(FailedPreconditionError, match="t1 was cancelled"):
        await reader
    await client.close()


def test_a_closed_client_says_so(gateway):
    client = Client(gateway.address)
    session = client.create_session()
    client.close()
    for call in (client.models, session.get, lambda: client.generate("alpha", "hi"), lambda: session.generate("alpha")):
        with pytest.raises(FailedPreconditionError, match="this client is closed"):
            call()


async def test_a_closed_client_says_so_for_asyncio(gateway, caplog):
    client = AsyncClient(gateway.address)
    stream = client.generate("alpha", "endless")
    waiting = asyncio.create_task(client.session("s0").get())
    await client.close()
    with pytest.raises(FailedPreconditionError, match="this client is closed"):
        await client.models()
    with pytest.raises(FailedPreconditionError, match="this client is closed"):
        client.generate("alpha", "hi")
    with pytest.raises(FailedPreconditionError, match="this client is closed"):
        await waiting
    stream.cancel()
    del stream
    gc.collect()
    await asyncio.sleep(0)
    assert caplog.records == []


async def test_the_farewell_is_sent_before_what_comes_next(gateway, monkeypatch):
    async with AsyncClient(gateway.address) as client:
        stream = client.generate("alpha", "endless")
        await anext(stream)
        generation, sent = client._stubs.generation, []
        cancel_turn = generation.CancelTurn
        monkeypatch.setattr(generation, "CancelTurn", lambda *a, **kw: sent.append("sent") or cancel_turn(*a, **kw))
        stream.cancel()
        assert sent == ["sent"]
        await eventually(lambda: gateway.cancelled == [stream.turn_id])


async def test_the_stream_closes_as_generators_do(gateway):
    async with AsyncClient(gateway.address) as client:
        stream = client.generate("alpha", "endless", turn_id="t1")
        await anext(stream)
        await stream.aclose()
        await eventually(lambda: gateway.cancelled == ["t1"])
