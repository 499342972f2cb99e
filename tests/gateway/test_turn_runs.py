"""The same turn_id is the same turn; a turn outlives its listeners only where it was asked to."""

import asyncio

import grpc
import grpc.aio
import pytest
from waiting import eventually

from icarus.v1 import generation_pb2 as pb
from icarus.v1 import generation_service_pb2, session_service_pb2

PROMPT = list(range(40, 50))
ANSWER = [65, 66, 67, 68, 69, 70]


def tokens(*ids):
    return pb.Content(token_ids=pb.TokenIds(ids=ids))


async def new_session(cluster, *ids, **fields):
    content = tokens(*ids) if ids else None
    request = session_service_pb2.CreateSessionRequest(content=content, **fields)
    return (await cluster.sessions.CreateSession(request)).session.session_id


async def state(cluster, session_id):
    request = session_service_pb2.GetSessionRequest(session_id=session_id)
    session = (await cluster.sessions.GetSession(request)).session
    return list(session.token_ids), session.num_turns


@pytest.fixture(params=["session", "stateless"])
async def ask(request, cluster):
    """`ask(turn_id, ...)` is a stream of one turn, of a session or without one."""
    session_id = await new_session(cluster, *PROMPT)

    def call(turn_id="t", resume_from=0, resumable=False, max_tokens=6, tenant="", min_delta_tokens=0, **sampling):
        fields = {
            "turn_id": turn_id,
            "tenant": tenant,
            "model": "base",
            "resume_from": resume_from,
            "resumable": resumable,
            "min_delta_tokens": min_delta_tokens,
            "sampling": pb.SamplingParams(max_tokens=max_tokens, ignore_eos=True, **sampling),
        }
        if request.param == "stateless":
            return cluster.generation.Generate(
                generation_service_pb2.GenerateRequest(content=tokens(*PROMPT), **fields)
            )
        return cluster.sessions.GenerateTurn(session_service_pb2.GenerateTurnRequest(session_id=session_id, **fields))

    call.session_id = session_id
    call.has_session = request.param == "session"
    return call


async def collect(stream):
    """(ids, text, the finished message)."""
    ids, text, finished = [], "", None
    while (response := await stream.read()) is not grpc.aio.EOF:
        assert finished is None, "an event after the end"
        if response.event.HasField("delta"):
            ids += response.event.delta.token_ids
            text += response.event.delta.text
        else:
            finished = response.event.finished
    assert finished is not None
    return ids, text, finished


async def read_tokens(stream, count):
    """(ids, text) of the next deltas, exactly `count` tokens of them."""
    ids, text = [], ""
    while len(ids) < count:
        event = (await stream.read()).event
        ids += event.delta.token_ids
        text += event.delta.text
    assert len(ids) == count
    return ids, text


async def fails(stream, code, told=""):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(stream)
    assert caught.value.code() is code and told in caught.value.details(), caught.value


async def idle(cluster):
    await eventually(lambda: cluster.table.live()[0].num_assigned == 0)


async def test_a_finished_turn_is_given_again(cluster, ask):
    worker = await cluster.add("d1", answer=ANSWER)
    first = await collect(ask(temperature=0.7))
    assert first[0] == ANSWER
    assert await collect(ask(temperature=0.7)) == first, "with the seed that the gateway drew"
    assert len(worker.script.begun) == 1
    if ask.has_session:
        assert await state(cluster, ask.session_id) == (PROMPT + ANSWER, 1)
    other = await collect(ask("another", temperature=0.7))
    assert len(worker.script.begun) == 2 and other[2].seed != first[2].seed


async def test_a_second_caller_joins_the_running_turn(cluster, ask):
    worker = await cluster.add("d1", answer=ANSWER, pause_after=3)
    first = ask()
    begun, _ = await read_tokens(first, 3)
    second, third = ask(), ask(resume_from=2)
    assert (await read_tokens(second, 3))[0] == ANSWER[:3]
    assert (await read_tokens(third, 1))[0] == ANSWER[2:3]
    worker.script.go_on.set()
    rest, more, finished = await collect(first)
    assert begun + rest == ANSWER
    assert await collect(second) == (ANSWER[3:], more, finished)
    assert (await collect(third))[0] == ANSWER[3:]
    assert len(worker.script.begun) == 1


async def test_how_many_tokens_come_at_once_is_the_first_callers_choice(cluster, ask):
    worker = await cluster.add("d1", answer=ANSWER, pause_after=1)
    stream = ask(min_delta_tokens=5000)
    await read_tokens(stream, 1)
    joined = ask(min_delta_tokens=2)
    worker.script.go_on.set()
    assert (await collect(joined))[0] == ANSWER
    assert [begin.min_delta_tokens for begin in worker.script.begun] == [256]


async def test_another_request_under_the_same_id(cluster, ask):
    worker = await cluster.add("d1", answer=ANSWER, pause_after=1)
    stream = ask()
    await read_tokens(stream, 1)
    for differs in ({"max_tokens": 5}, {"temperature": 0.5}, {"stop": ["x"]}):
        await fails(ask(**differs), grpc.StatusCode.ALREADY_EXISTS, "'t' belongs to another request")
    if not ask.has_session:
        other = asyncio.create_task(collect(ask(tenant="b")))
        await eventually(lambda: len(worker.script.begun) == 2)
    worker.script.go_on.set()
    assert (await collect(stream))[0] == ANSWER[1:]
    if not ask.has_session:
        assert (await other)[0] == ANSWER
    await fails(ask(max_tokens=5), grpc.StatusCode.ALREADY_EXISTS)
    assert (await collect(ask(tenant="default")))[0] == ANSWER


async def test_resuming_at_every_token(cluster, ask, model):
    """The text of all deltas before and after the offset is the whole text, over split characters and stop strings."""
    text = "aé日本 ST STO STOP hidden"
    answer = model.tokenizer.encode(text)
    await cluster.add("d1", answer=answer)
    fields = {"max_tokens": len(answer), "stop": ["STOP"]}
    ids, whole, finished = await collect(ask(**fields))
    assert whole == "aé日本 ST STO " and ids == model.tokenizer.encode(whole + "STOP")
    after = {}
    for offset in range(len(ids) + 1):
        rest, more, end = await collect(ask(resume_from=offset, **fields))
        assert rest == ids[offset:] and end == finished and whole.endswith(more)
        after[offset] = more
    assert after[0] == whole and after[len(ids)] == ""
    stream = ask("slow", **fields)
    seen, count = "", 0
    while (response := await stream.read()) is not grpc.aio.EOF:
        if response.event.HasField("delta"):
            seen += response.event.delta.text
            count += len(response.event.delta.token_ids)
            assert seen + after[count] == whole
    await fails(ask(resume_from=len(ids) + 1, **fields), grpc.StatusCode.INVALID_ARGUMENT, f"has {len(ids)} output")


async def test_text_held_back_at_the_end_belongs_to_the_last_token(cluster, ask, model):
    answer = model.tokenizer.encode("so ST")
    await cluster.add("d1", answer=answer)
    fields = {"max_tokens": len(answer), "stop": ["STOP"]}
    assert (await collect(ask(**fields)))[1] == "so ST"
    assert (await collect(ask(resume_from=len(answer) - 1, **fields)))[:2] == (answer[-1:], "ST")
    assert (await collect(ask(resume_from=len(answer), **fields)))[:2] == ([], "")


async def test_resuming_what_nobody_remembers(cluster, ask):
    worker = await cluster.add("d1", answer=ANSWER)
    await fails(ask(resume_from=2), grpc.StatusCode.NOT_FOUND, "turn 't' is not known here")
    await fails(ask(resume_from=-1), grpc.StatusCode.INVALID_ARGUMENT, "resume_from is -1")
    await fails(ask(min_delta_tokens=-1), grpc.StatusCode.INVALID_ARGUMENT, "min_delta_tokens is -1")
    await fails(ask("", resume_from=2), grpc.StatusCode.INVALID_ARGUMENT, "need the turn_id")
    await fails(ask("", resumable=True), grpc.StatusCode.INVALID_ARGUMENT, "need the turn_id")
    assert not worker.script.begun
    assert (await collect(ask("")))[0] == ANSWER


async def test_a_failed_turn_leaves_its_id_free(cluster, ask):
    worker = await cluster.add("d1", answer=ANSWER, die_after=2)
    stream, joined = ask(), ask()
    await fails(stream, grpc.StatusCode.UNAVAILABLE, "gone")
    await fails(joined, grpc.StatusCode.UNAVAILABLE)
    worker.script.die_after = None
    await worker.beat()
    assert (await collect(ask()))[0] == ANSWER
    assert (await collect(ask(resume_from=4)))[0] == ANSWER[4:]
    if ask.has_session:
        assert await state(cluster, ask.session_id) == (PROMPT + ANSWER, 1)


@pytest.mark.parametrize("turn_id", ["", "t"])
async def test_without_listeners_a_turn_ends_at_once(cluster, ask, turn_id):
    worker = await cluster.add("d1", answer=ANSWER, pause_after=1)
    stream = ask(turn_id)
    await read_tokens(stream, 1)
    stream.cancel()
    await asyncio.wait_for(worker.script.cancelled.wait(), 5)
    await idle(cluster)
    worker.script.pause_after = None
    if turn_id:
        await fails(ask(turn_id, resume_from=1), grpc.StatusCode.NOT_FOUND)
    assert (await collect(ask(turn_id)))[0] == ANSWER
    if ask.has_session:
        assert await state(cluster, ask.session_id) == (PROMPT + ANSWER, 1)


async def test_one_listener_that_stays_is_enough(cluster, ask):
    worker = await cluster.add("d1", answer=ANSWER, pause_after=1)
    first, second = ask(), ask()
    await read_tokens(first, 1)
    await read_tokens(second, 1)
    first.cancel()
    await asyncio.sleep(0.1)  # long enough, mostly, for a cancellation to be seen
    worker.script.go_on.set()
    assert (await collect(second))[0] == ANSWER[1:] and not worker.script.cancelled.is_set()


async def test_a_resumable_turn_waits_for_its_caller(cluster, ask):
    """The caller's connection breaks after two tokens; the turn ends meanwhile."""
    worker = await cluster.add("d1", answer=ANSWER, pause_after=2)
    stream = ask(resumable=True)
    seen, _ = await read_tokens(stream, 2)
    stream.cancel()
    with pytest.raises(asyncio.CancelledError):
        await collect(stream)
    await asyncio.sleep(0.1)
    again = ask(resume_from=2, resumable=True)
    waiting = asyncio.create_task(collect(again))
    await asyncio.sleep(0.05)
    again.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not worker.script.cancelled.is_set()
    worker.script.go_on.set()
    await idle(cluster)
    rest, _, finished = await collect(ask(resume_from=2, resumable=True))
    assert seen + rest == ANSWER and finished.usage.completion_tokens == len(ANSWER)
    assert len(worker.script.begun) == 1
    if ask.has_session:
        assert await state(cluster, ask.session_id) == (PROMPT + ANSWER, 1)


async def test_an_id_that_is_being_cancelled_is_a_new_turn(cluster, ask):
    worker = await cluster.add("d1", answer=ANSWER, pause_after=1)
    for _ in range(5):
        stream = ask()
        assert (await read_tokens(stream, 1))[0] == ANSWER[:1]
        stream.cancel()
    worker.script.pause_after = None
    worker.script.go_on.set()  # the last cancellation may come after what follows it
    async with asyncio.timeout(10):
        ids = (await collect(ask()))[0]
    assert ids == ANSWER


async def resumable_turn(cluster, **fields):
    """A session's turn under way that nobody listens to any more; (session, request)."""
    session_id = await new_session(cluster, *PROMPT)
    request = session_service_pb2.GenerateTurnRequest(
        session_id=session_id,
        model="base",
        turn_id="t",
        resumable=True,
        sampling=pb.SamplingParams(max_tokens=len(ANSWER), ignore_eos=True),
        **fields,
    )
    stream = cluster.sessions.GenerateTurn(request)
    await read_tokens(stream, 2)
    stream.cancel()
    return session_id, request


async def test_the_grace_period_ends(model, new_cluster):
    async with new_cluster(model, resume_grace_seconds=0.2) as cluster:
        worker = await cluster.add("d1", answer=ANSWER, pause_after=2)
        session_id, request = await resumable_turn(cluster)
        await asyncio.wait_for(worker.script.cancelled.wait(), 5)
        await idle(cluster)
        worker.script.pause_after = None
        assert await state(cluster, session_id) == (PROMPT, 0)
        assert (await collect(cluster.sessions.GenerateTurn(request)))[0] == ANSWER


async def test_no_grace_period(model, new_cluster):
    async with new_cluster(model, resume_grace_seconds=0.0) as cluster:
        worker = await cluster.add("d1", answer=ANSWER, pause_after=2)
        await resumable_turn(cluster)
        await asyncio.wait_for(worker.script.cancelled.wait(), 5)


async def test_another_tenant_cannot_end_a_turn(cluster):
    worker = await cluster.add("d1", answer=ANSWER, pause_after=2)
    session_id, request = await resumable_turn(cluster)
    await cluster.generation.CancelTurn(generation_service_pb2.CancelTurnRequest(turn_id="t", tenant="other"))
    again = cluster.sessions.GenerateTurn(request)
    await read_tokens(again, 2)
    worker.script.go_on.set()
    assert (await collect(again))[0] == ANSWER[2:]
    assert len(worker.script.begun) == 1 and not worker.script.cancelled.is_set()
    assert await state(cluster, session_id) == (PROMPT + ANSWER, 1)


async def test_a_turn_that_nobody_listens_to_can_be_ended(cluster):
    worker = await cluster.add("d1", answer=ANSWER, pause_after=2)
    session_id, request = await resumable_turn(cluster)
    cancel = generation_service_pb2.CancelTurnRequest(turn_id="t")
    await cluster.generation.CancelTurn(cancel)
    await asyncio.wait_for(worker.script.cancelled.wait(), 5)
    await idle(cluster)
    await cluster.generation.CancelTurn(cancel)
    assert await state(cluster, session_id) == (PROMPT, 0)
    worker.script.pause_after = None
    assert (await collect(cluster.sessions.GenerateTurn(request)))[0] == ANSWER
    await cluster.generation.CancelTurn(cancel)
    assert await state(cluster, session_id) == (PROMPT + ANSWER, 1)


async def test_ending_a_turn_is_told_to_who_listens(cluster, ask):
    await cluster.add("d1", answer=ANSWER, pause_after=2)
    stream = ask()
    await read_tokens(stream, 2)
    await cluster.generation.CancelTurn(generation_service_pb2.CancelTurnRequest(turn_id="t"))
    await fails(stream, grpc.StatusCode.ABORTED, "was cancelled")


async def test_who_ends_a_turn_names_it(cluster):
    with pytest.raises(grpc.aio.AioRpcError, match="turn_id is empty") as caught:
        await cluster.generation.CancelTurn(generation_service_pb2.CancelTurnRequest(tenant="t"))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_not_too_many_turns_are_remembered(model, new_cluster):
    async with new_cluster(model, max_remembered_turns=2) as cluster:
        worker = await cluster.add("d1", answer=ANSWER)

        def play(turn_id, tenant="", **fields):
            sampling = pb.SamplingParams(max_tokens=2, ignore_eos=True)
            request = generation_service_pb2.GenerateRequest(
                turn_id=turn_id, tenant=tenant, model="base", content=tokens(1), sampling=sampling, **fields
            )
            return collect(cluster.generation.Generate(request))

        for turn_id in "abc":
            await play(turn_id)
        await play("a", "another tenant")
        assert len(worker.script.begun) == 4
        await play("c", resume_from=1)
        await play("a")  # the oldest was forgotten
        assert len(worker.script.begun) == 5


async def test_a_turn_is_remembered_for_a_while(model, new_cluster):
    async with new_cluster(model, remember_turn_seconds=0.05) as cluster:
        worker = await cluster.add("d1", answer=ANSWER)
        sampling = pb.SamplingParams(max_tokens=2, ignore_eos=True)
        request = generation_service_pb2.GenerateRequest(
            turn_id="t", model="base", content=tokens(1), sampling=sampling
        )
        async with asyncio.timeout(20):
            while len(worker.script.begun) < 2:  # the same turn again, until it is forgotten
                assert (await collect(cluster.generation.Generate(request)))[0] == ANSWER[:2]
                await asyncio.sleep(0.02)


async def test_all_tenants_turns_together_are_bounded(model, new_cluster):
    async with new_cluster(model, max_remembered_tokens=20) as cluster:
        worker = await cluster.add("d1", answer=ANSWER)

        async def play(tenant):
            sampling = pb.SamplingParams(max_tokens=6, ignore_eos=True)
            request = generation_service_pb2.GenerateRequest(
                turn_id="t", tenant=tenant, model="base", content=tokens(1), sampling=sampling
            )
            assert (await collect(cluster.generation.Generate(request)))[0] == ANSWER

        for tenant in "abcd":
            await play(tenant)
        for tenant in "bcd":
            await play(tenant)
        assert len(worker.script.begun) == 4
        await play("a")
        await play("b")
        assert len(worker.script.begun) == 6


async def test_a_cancellation_that_came_too_late_is_told_how_the_turn_finished(cluster, ask):
    worker = await cluster.add("d1", answer=ANSWER, pause_after=2)
    cancel = generation_service_pb2.CancelTurnRequest(turn_id="t")
    stream = ask()
    await read_tokens(stream, 2)
    assert not (await cluster.generation.CancelTurn(cancel)).HasField("finished")
    worker.script.pause_after = None
    _, _, finished = await collect(ask())
    assert (await cluster.generation.CancelTurn(cancel)).finished == finished


@pytest.mark.parametrize("kind", ["turn", "append", "delete"])
async def test_a_session_whose_turn_is_being_cancelled_is_waited_for(cluster, kind):
    """The caller's next call may come even before its cancellation."""
    worker = await cluster.add("d1", answer=ANSWER, pause_after=1)
    session_id = await new_session(cluster, *PROMPT)
    sampling = pb.SamplingParams(max_tokens=3, ignore_eos=True)
    request = session_service_pb2.GenerateTurnRequest(session_id=session_id, model="base", sampling=sampling)
    for _ in range(10):
        stream = cluster.sessions.GenerateTurn(request)
        await read_tokens(stream, 1)
        worker.script.pause_after = None if kind == "turn" else 1
        if kind == "append":
            append = session_service_pb2.AppendContentRequest(session_id=session_id, content=tokens(9))
            following = cluster.sessions.AppendContent(append)
        elif kind == "delete":
            following = cluster.sessions.DeleteSession(session_service_pb2.DeleteSessionRequest(session_id=session_id))
        else:
            following = collect(cluster.sessions.GenerateTurn(request))
        following = asyncio.ensure_future(following)
        await asyncio.sleep(0)
        stream.cancel()
        await following
        worker.script.pause_after = 1
        if kind == "delete":
            session_id = await new_session(cluster, *PROMPT)
            request.session_id = session_id
    if kind != "delete":
        num_tokens, num_turns = (30, 10) if kind == "turn" else (10, 0)
        ids, turns = await state(cluster, session_id)
        assert (len(ids), turns) == (len(PROMPT) + num_tokens, num_turns)


async def test_many_turns_at_once_keep_a_session_linear(cluster):
    """Whoever wins is in the history, whole and once; everybody else is told ABORTED."""
    worker = await cluster.add("d1", answer=ANSWER)
    session_id = await new_session(cluster, *PROMPT)

    async def attempt(i):
        request = session_service_pb2.GenerateTurnRequest(
            session_id=session_id,
            model="base",
            turn_id=f"turn {i % 60}",  # some of them twice
            content=tokens(100 + i % 60),
            sampling=pb.SamplingParams(max_tokens=1 + i % 60 % 5, ignore_eos=True),
        )
        await asyncio.sleep(0.002 * (i % 60))
        try:
            ids, _, finished = await collect(cluster.sessions.GenerateTurn(request))
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.ABORTED and session_id in (error.details() or "")
            return None
        assert finished.usage.completion_tokens == len(ids) == 1 + i % 60 % 5
        return i % 60, [100 + i % 60, *ids], finished.usage.prompt_tokens

    won = [result for result in await asyncio.gather(*map(attempt, range(80))) if result]
    turns = {i: (pieces, num_prompt) for i, pieces, num_prompt in won}
    in_order = sorted(turns.values(), key=lambda turn: turn[1])
    expected = list(PROMPT)
    for pieces, num_prompt in in_order:
        assert num_prompt == len(expected) + 1, "each turn read the history that the one before it left"
        expected += pieces
    assert await state(cluster, session_id) == (expected, len(turns))
    assert len(worker.script.begun) == len(turns) >= 1


async def test_two_at_once(cluster):
    worker = await cluster.add("d1", answer=ANSWER, pause_after=1)
    session_id = await new_session(cluster, *PROMPT)
    sampling = pb.SamplingParams(max_tokens=3, ignore_eos=True)
    request = session_service_pb2.GenerateTurnRequest(session_id=session_id, model="base", sampling=sampling)
    first = cluster.sessions.GenerateTurn(request)
    await read_tokens(first, 1)
    await fails(cluster.sessions.GenerateTurn(request), grpc.StatusCode.ABORTED, session_id)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await cluster.sessions.AppendContent(
            session_service_pb2.AppendContentRequest(session_id=session_id, content=tokens(1))
        )
    assert caught.value.code() is grpc.StatusCode.ABORTED
    worker.script.go_on.set()
    await collect(first)
    assert await state(cluster, session_id) == (PROMPT + ANSWER[:3], 1)
    await collect(cluster.sessions.GenerateTurn(request))  # at once: the end is told when the session is free


async def test_who_hears_of_the_end_finds_the_session_free(cluster):
    await cluster.add("d1", answer=ANSWER)
    session_id = await new_session(cluster, *PROMPT)
    sampling = pb.SamplingParams(max_tokens=1, ignore_eos=True)
    request = session_service_pb2.GenerateTurnRequest(session_id=session_id, model="base", sampling=sampling)
    for _ in range(50):
        stream = cluster.sessions.GenerateTurn(request)
        while not (await stream.read()).event.HasField("finished"):
            pass
        await cluster.sessions.AppendContent(
            session_service_pb2.AppendContentRequest(session_id=session_id, content=tokens(9))
        )
    assert (await state(cluster, session_id))[1] == 50
