"""Sessions that are on disk: what a gateway finds after a restart, and what it says where it cannot write."""

import asyncio
import sqlite3
import threading
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from gateway.test_sessions import Clock, of
from gateway.test_turn_runs import ANSWER, PROMPT, collect, fails, new_session, state, tokens
from icarus_gateway.sessions.history import History
from icarus_gateway.sessions.session_file import SessionFile
from icarus_gateway.sessions.store import SessionStore
from icarus_gateway.turns.events import Delta, End
from icarus_gateway.turns.runs import FinishedTurn, TurnKey
from waiting import eventually

from icarus.errors import ConfigError, NotFoundError, UnavailableError
from icarus.types import FinishReason, TokenLogprob, TokenLogprobs, Usage, WorkerId
from icarus.v1 import generation_pb2 as pb
from icarus.v1 import generation_service_pb2, session_service_pb2

LONG = of(*range(20_000)).extended((1, 2), after_messages=True).extended((3,), answer_open=True)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sessions.db"


@asynccontextmanager
async def opened(path, *, ttl_seconds=1000.0, clock=None, model="base", vocabulary="v"):
    file = SessionFile.open(path, model, vocabulary)
    store = SessionStore(10, ttl_seconds, clock or Clock(), file)
    yield store
    await store.close()


def fill(store):
    """No page more: the disk is full."""
    database = store._file._connection
    (used,) = database.execute("PRAGMA page_count").fetchone()
    database.execute(f"PRAGMA max_page_count = {used}")


def make_room(store):
    store._file._connection.execute("PRAGMA max_page_count = 1000000")


async def block(store):
    """The file's thread writes nothing until the event is set."""
    blocked, go_on = threading.Event(), threading.Event()
    store._file._thread.submit(lambda: (blocked.set(), go_on.wait(30)))
    await eventually(blocked.is_set)
    return go_on


async def test_what_is_found_after_a_restart(path):
    async with opened(path) as store:
        made = [await store.create("a", history) for history in (of(1), LONG, History(), of(5))]
        other = await store.create("b", LONG.first(20_001), 30.0)
        with store.hold("a", made[1].session_id) as session:
            longer = session.history.answered((7, 8)).extended((9,), answer_open=False)
            await session.commit(longer)
        await store.delete("a", made[0].session_id)
    async with opened(path) as store:
        found = store.list("a", 0, 10).sessions
        assert [s.session_id for s in found] == [s.session_id for s in made[1:]]
        assert [s.history for s in found] == [longer, History(), of(5)]
        assert store.get("b", other.session_id) == other
        with pytest.raises(NotFoundError):
            store.get("b", made[1].session_id)
        new = await store.create("a", of(6))
        assert store.list("a", 0, 10).sessions[-1] == new
        with store.hold("a", made[1].session_id) as session:
            await session.commit(longer.extended((10,)))
    async with opened(path, ttl_seconds=20.0) as store:
        assert store.get("a", made[1].session_id).history == longer.extended((10,))
        assert {s.ttl_seconds for s in store.list("b", 0, 10).sessions} == {20.0}
        assert store.counts().live == 5


async def test_time_that_no_gateway_runs_does_not_count(path):
    clock = Clock()
    async with opened(path, ttl_seconds=100.0, clock=clock) as store:
        idle, used = [(await store.create("a", of(1))).session_id for _ in range(2)]
        clock.now += 40
        await store.sweep()
        clock.now += 20
        store.get("a", used)
        clock.now += 5
    later = Clock()
    later.now = 7.0
    async with opened(path, ttl_seconds=100.0, clock=later) as store:
        assert [s.expires_in_seconds for s in store.list("a", 0, 9).sessions] == [35.0, 95.0]
        later.now += 36
        assert await store.sweep() == 1
    async with opened(path, ttl_seconds=100.0) as store:
        assert [s.session_id for s in store.list("a", 0, 9).sessions] == [used] and idle
        (rows,) = store._file._connection.execute("SELECT count(*) FROM pieces").fetchone()
        assert rows == 1


async def test_a_commit_writes_what_is_new_alone(path):
    async with opened(path) as store:
        session_id = (await store.create("a", LONG)).session_id
        database = store._file._connection
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        before = database.total_changes
        with store.hold("a", session_id) as session:
            await session.commit(session.history.extended((1,)).extended((2,)))
        assert database.total_changes - before == 4  # the clock, the session's use, two pieces
        assert path.with_name("sessions.db-wal").stat().st_size < 20_000 < len(LONG.packed)


async def test_a_full_disk_changes_nothing(path):
    async with opened(path) as store:
        key = ("a", (await store.create("a", of(1))).session_id)
        fill(store)
        with store.hold(*key) as session, pytest.raises(UnavailableError, match="disk is full; nothing was changed"):
            await session.commit(session.history.extended(range(20_000)))
        with pytest.raises(UnavailableError):
            await store.create("a", LONG)
        assert [s.history for s in store.list("a", 0, 9).sessions] == [of(1)]
        assert store.counts().write_errors == 2 and store.counts().created == 1
        make_room(store)
        with store.hold(*key) as session:
            await session.commit(session.history.extended(range(20_000)))
    async with opened(path) as store:
        assert [s.history.num_tokens for s in store.list("a", 0, 9).sessions] == [20_001]


async def test_a_write_that_has_begun_is_not_cancelled(path):
    async with opened(path) as store:
        key = ("a", (await store.create("a", of(1))).session_id)
        go_on = await block(store)

        async def commit():
            with store.hold(*key) as session:
                await session.commit(of(1).extended((2,)))
                return session.history.token_ids

        task = asyncio.create_task(commit())
        await asyncio.sleep(0)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        assert store.get(*key).history == of(1) and not task.done()
        go_on.set()
        assert await task == (1, 2)
        assert store.get(*key).history.token_ids == (1, 2)


async def test_a_file_in_the_home_of_the_user(path, monkeypatch):
    monkeypatch.setenv("HOME", str(path.parent))
    async with opened(Path("~", path.name)):
        assert path.is_file()


async def test_files_that_are_refused(path, tmp_path):
    async with opened(path):
        with pytest.raises(ConfigError, match=r"sessions.db is another gateway's, which is running"):
            SessionFile.open(path, "base", "v")
    with pytest.raises(ConfigError, match="holds sessions of model 'base'; this gateway serves 'other'"):
        SessionFile.open(path, "other", "v")
    with pytest.raises(ConfigError, match="holds sessions of another vocabulary"):
        SessionFile.open(path, "base", "w")
    with pytest.raises(ConfigError, match=r"cannot be opened: .*File exists"):
        SessionFile.open(path / "sessions.db", "base", "v")
    with pytest.raises(ConfigError, match=r"session_file ~nobody-of-that-name/s.db cannot be opened: .*home"):
        SessionFile.open(Path("~nobody-of-that-name/s.db"), "base", "v")
    text, foreign = tmp_path / "text", tmp_path / "foreign"
    text.write_text("no database " * 100)
    with pytest.raises(ConfigError, match="cannot be used: file is not a database"):
        SessionFile.open(text, "base", "v")
    with sqlite3.connect(foreign) as database:
        database.execute("CREATE TABLE mine (x)")
    with pytest.raises(ConfigError, match="has version 0; this release reads 1"):
        SessionFile.open(foreign, "base", "v")
    assert path.stat().st_mode & 0o077 == 0
    async with opened(path):
        pass


async def test_a_finished_turn_is_kept_as_it_was(path):
    logprobs = TokenLogprobs(TokenLogprob(5, -0.5), (TokenLogprob(5, -0.5), TokenLogprob(6, -1.5)))
    end = End(FinishReason.STOP, Usage(3, 2, 2, 1, 0, 1, 4, 1, 9), 2**64 - 1, WorkerId("d"), WorkerId("p"), None, None)
    events = (Delta((5,), "a\u00e9", (logprobs,)), Delta((6,), ""), Delta((), "rest"), end)
    turn = FinishedTurn(TurnKey("a", "t", b"\0f"), events, 60.0)
    clock = Clock()
    async with opened(path, clock=clock) as store:
        key = ("a", (await store.create("a", of(1))).session_id)
        with store.hold(*key) as session:
            await session.commit(session.history.extended((5, 6)), turn)
        clock.now += 20
    async with opened(path, clock=clock) as store:
        assert list(store.finished_turns()) == [FinishedTurn(turn.key, events, 40.0)]
        clock.now += 41
    async with opened(path) as store:
        assert list(store.finished_turns()) == []


def ask(cluster, session_id, turn_id="t", resumable=False, resume_from=0, max_tokens=6, content=None, **sampling):
    request = session_service_pb2.GenerateTurnRequest(
        session_id=session_id,
        turn_id=turn_id,
        model="base",
        content=content,
        resume_from=resume_from,
        resumable=resumable,
        sampling=pb.SamplingParams(max_tokens=max_tokens, ignore_eos=True, **sampling),
    )
    return cluster.sessions.GenerateTurn(request)


async def test_a_turn_whose_end_was_lost_is_given_again_after_a_restart(model, new_cluster, path):
    """The caller that lost it asks again, under the same id: nothing is generated or appended twice."""
    answer = model.tokenizer.encode("aé STO STOP hidden")
    fields = {"max_tokens": len(answer), "stop": ["STOP"]}
    async with new_cluster(model, session_file=str(path)) as cluster:
        worker = await cluster.add("d1", answer=answer)
        session_id = await new_session(cluster, *PROMPT)
        first = await collect(ask(cluster, session_id, **fields))
        before = await state(cluster, session_id)
    async with new_cluster(model, session_file=str(path)) as cluster:
        worker = await cluster.add("d1", answer=answer)
        assert await state(cluster, session_id) == before == (PROMPT + first[0], 1)
        assert await collect(ask(cluster, session_id, **fields)) == first and first[1] == "aé STO "
        rest = await collect(ask(cluster, session_id, resume_from=3, **fields))
        assert rest[0] == first[0][3:] and rest[2] == first[2] and first[1].endswith(rest[1])
        await fails(ask(cluster, session_id, max_tokens=3), grpc.StatusCode.ALREADY_EXISTS, "'t' belongs to another")
        cancelled = await cluster.generation.CancelTurn(generation_service_pb2.CancelTurnRequest(turn_id="t"))
        assert cancelled.finished == first[2]
        assert not worker.script.begun and await state(cluster, session_id) == before
        await collect(ask(cluster, session_id, "next", max_tokens=2))
        assert list(worker.script.begun[0].token_ids) == before[0]
        assert (await state(cluster, session_id))[1] == 2


async def test_a_gateway_that_drains_waits_for_a_turn_whose_listener_is_away(new_process, path):
    """What it gave is there after the restart."""
    async with new_process(session_file=str(path)) as process:
        worker = await process.cluster.add("d1", answer=ANSWER, pause_after=2)
        session_id = await new_session(process.cluster, *PROMPT)
        stream = ask(process.cluster, session_id, resumable=True)
        await stream.read()
        stream.cancel()
        process.signalled.set()
        await asyncio.wait((process.serving,), timeout=0.5)
        assert not process.serving.done()
        worker.script.go_on.set()
    async with new_process(session_file=str(path)) as process:
        assert (await collect(ask(process.cluster, session_id)))[0] == ANSWER


async def test_without_a_file_a_gateway_that_drains_waits_for_listeners_alone(new_process):
    async with new_process() as process:
        await process.cluster.add("d1", answer=ANSWER, pause_after=2)
        stream = ask(process.cluster, await new_session(process.cluster, *PROMPT), resumable=True)
        await stream.read()
        stream.cancel()
        process.signalled.set()
        await asyncio.wait((process.serving,), timeout=5)
        assert process.serving.done()


async def test_turns_are_remembered_no_longer_over_a_restart(model, new_cluster, path):
    settings = {"session_file": str(path), "remember_turn_seconds": 0.3}
    async with new_cluster(model, **settings) as cluster:
        await cluster.add("d1", answer=ANSWER)
        session_id = await new_session(cluster, *PROMPT)
        await collect(ask(cluster, session_id))
    async with new_cluster(model, **settings) as cluster:
        worker = await cluster.add("d1", answer=ANSWER)
        await asyncio.sleep(0.4)
        await collect(ask(cluster, session_id))
        assert len(worker.script.begun) == 1 and (await state(cluster, session_id))[1] == 2


async def test_a_turn_that_cannot_be_kept_fails(model, new_cluster, path):
    async with new_cluster(model, session_file=str(path)) as cluster:
        worker = await cluster.add("d1", answer=ANSWER)
        session_id = await new_session(cluster, *PROMPT)
        long = tokens(*[7] * 3000)
        fill(cluster.store)
        await fails(ask(cluster, session_id, content=long), grpc.StatusCode.UNAVAILABLE, "disk is full")
        append = session_service_pb2.AppendContentRequest(session_id=session_id, content=long)
        with pytest.raises(grpc.aio.AioRpcError, match="disk is full"):
            await cluster.sessions.AppendContent(append)
        assert await state(cluster, session_id) == (PROMPT, 0)
        families = await asyncio.to_thread(lambda: list(cluster.metrics.collect()))
        samples = {s.name: s.value for family in families for s in family.samples}
        assert samples["icarus_session_store_errors_total"] == 2
        make_room(cluster.store)
        await collect(ask(cluster, session_id, content=long))
        assert len(worker.script.begun) == 2
        assert await state(cluster, session_id) == (PROMPT + [7] * 3000 + ANSWER, 1)


async def test_cancelling_a_turn_while_it_is_written(model, new_cluster, path):
    """The transaction decides: the turn finished, and whoever cancelled it is told so."""
    async with new_cluster(model, session_file=str(path)) as cluster:
        await cluster.add("d1", answer=ANSWER)
        session_id = await new_session(cluster, *PROMPT)
        go_on = await block(cluster.store)
        turn = asyncio.create_task(collect(ask(cluster, session_id)))
        await eventually(cluster.store._file._thread._work_queue.qsize)
        request = generation_service_pb2.CancelTurnRequest(turn_id="t")
        cancelling = asyncio.ensure_future(cluster.generation.CancelTurn(request))
        await asyncio.sleep(0.1)
        assert not cancelling.done() and await state(cluster, session_id) == (PROMPT, 0)
        go_on.set()
        assert (await cancelling).finished == (await turn)[2]
        assert await state(cluster, session_id) == (PROMPT + ANSWER, 1)


async def test_an_append_whose_caller_leaves_while_it_is_written(model, new_cluster, path):
    async with new_cluster(model, session_file=str(path)) as cluster:
        session_id = await new_session(cluster, *PROMPT)
        go_on = await block(cluster.store)
        request = session_service_pb2.AppendContentRequest(session_id=session_id, content=tokens(9))
        call = cluster.sessions.AppendContent(request)
        await eventually(cluster.store._file._thread._work_queue.qsize)
        call.cancel()
        following = asyncio.ensure_future(cluster.sessions.AppendContent(request))
        await asyncio.sleep(0.1)
        assert not following.done()
        go_on.set()
        assert (await following).num_tokens == len(PROMPT) + 2
