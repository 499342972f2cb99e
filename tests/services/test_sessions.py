"""Sessions over real processes: forks share the cache, broken streams are resumed, no turn is played twice."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from services.system import BLOCK_SIZE
from services.test_cancellation import decoding_held
from services.test_chain import ids

from icarus.client import AsyncClient
from icarus.client.retry import RetryPolicy
from icarus.errors import AlreadyExistsError, ConflictError, InvalidInputError, NotFoundError

USER, TOOL = "user", "tool"


def said(role, content):
    return [{"role": role, "content": content}]


def test_specialists_take_turns_by_messages(system, client):
    session = client.create_session(messages=said(USER, "What is the weather?"))
    for turn, model in enumerate(["s0", "s1", "tiny", "s2", "s0"]):
        if turn:
            session.append(messages=said(TOOL, f"result {turn}"))
            session.append(messages=[*said(TOOL, "rain"), *said(USER, f"And then {turn}?")])
        history = session.token_ids()
        result = session.generate(model, max_tokens=9).result()
        after = session.get()
        assert after.token_ids[: len(history)] == history and after.num_turns == turn + 1
        assert after.token_ids[-len(result.token_ids) :] == result.token_ids
        system.check_greedy(model, list(after.token_ids[: -len(result.token_ids)]), result)
        if turn:
            assert result.usage.cached_tokens > 0
    session.delete()


def test_forks_share_the_cache_and_go_their_own_ways(system, client):
    session = client.create_session(token_ids=ids(100, 7100))
    session.generate("both", max_tokens=12, ignore_eos=True).result()
    whole = session.token_ids()
    branches = [session.fork(), session.fork(90), session.fork()]
    for i, branch in enumerate(branches):
        history = list(branch.token_ids())
        assert tuple(history) == whole[: len(history)]
        more = ids(3, 7200 + i)
        result = branch.generate("both", token_ids=more, max_tokens=5, ignore_eos=True).result()
        assert result.usage.cached_tokens >= (len(history) - 1) // BLOCK_SIZE * BLOCK_SIZE - BLOCK_SIZE
        system.check_greedy("both", history + more, result)
        assert branch.token_ids() == (*history, *more, *result.token_ids)
    assert session.token_ids() == whole
    listed = {summary.session_id: summary for summary in client.sessions(page_size=2)}
    assert [listed[s.session_id].num_turns for s in (session, *branches)] == [1, 2, 1, 2]
    for open_session in (session, *branches):
        open_session.delete()
        with pytest.raises(NotFoundError):
            open_session.get()
    left = {summary.session_id for summary in client.sessions()}
    assert left.isdisjoint(s.session_id for s in (session, *branches))


def test_the_same_turn_twice_is_one_turn(system, client):
    session = client.create_session(token_ids=ids(30, 7300))
    ask = {"max_tokens": 40, "ignore_eos": True, "temperature": 0.8, "turn_id": "mine"}
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: session.generate("s0", **ask).result(), range(4)))
    results.append(session.generate("s0", **ask).result())
    assert all(result == results[0] for result in results)
    assert session.get().num_turns == 1
    assert session.token_ids()[30:] == results[0].token_ids
    for offset in (1, 17, 39, 40):
        rest = session.generate("s0", resume_from=offset, **ask).result()
        assert rest.token_ids == results[0].token_ids[offset:] and results[0].text.endswith(rest.text)
        assert rest.usage == results[0].usage
    with pytest.raises(AlreadyExistsError, match="mine"):
        session.generate("s1", **ask).result()
    with pytest.raises(InvalidInputError, match="41"):
        session.generate("s0", resume_from=41, **ask).result()
    with pytest.raises(NotFoundError, match="cannot be resumed"):
        session.generate("s0", max_tokens=2, turn_id="never", resume_from=1).result()
    system.wait_until_idle()


async def test_a_caller_comes_back_for_a_turn_that_it_lost(system):
    """A client disappears in mid-stream; another one, who knows the turn's id, goes on where it was."""
    prompt = ids(40, 7400)
    ask = {"token_ids": prompt, "max_tokens": 300, "ignore_eos": True, "turn_id": "lost"}
    async with AsyncClient(system.address) as client:
        stream = client.generate("s0", **ask)
        seen, text = [], ""
        async for delta in stream:
            seen += delta.token_ids
            text += delta.text
            if len(seen) >= 20:
                break
        stream._call.cancel()  # as a connection that breaks: the client says nothing of not coming back
        await asyncio.sleep(0.1)
        rest = await client.generate("s0", resume_from=len(seen), **ask).result()
        again = await client.generate("s0", **ask).result()
    assert (*seen, *rest.token_ids) == again.token_ids and text + rest.text == again.text
    assert len(again.token_ids) == 300
    system.check_greedy("s0", prompt, again)
    await asyncio.to_thread(system.wait_until_idle)


async def test_a_turn_that_is_not_resumable_ends_with_its_caller(system):
    prompt = ids(40, 7500)
    ask = {"token_ids": prompt, "max_tokens": 900, "ignore_eos": True, "turn_id": "left"}
    async with AsyncClient(system.address, retry=RetryPolicy(retries=0)) as client:
        with decoding_held(system):
            stream = client.generate("s1", **ask)
            await anext(stream)
            stream.cancel()
            await asyncio.to_thread(system.wait_until_idle)
        with pytest.raises(NotFoundError, match="cannot be resumed"):
            await client.generate("s1", resume_from=1, **ask).result()


def test_many_callers_on_one_session(system, client):
    session = client.create_session(token_ids=ids(20, 7600))

    def attempt(i):
        try:
            return i, session.generate(f"s{i % 4}", token_ids=ids(2, 7700 + i), max_tokens=3, ignore_eos=True).result()
        except ConflictError:
            return i, None

    with ThreadPoolExecutor(8) as pool:
        won = [(i, result) for i, result in pool.map(attempt, range(24)) if result]
    expected = ids(20, 7600)
    for i, result in sorted(won, key=lambda turn: turn[1].usage.prompt_tokens):
        assert result.usage.prompt_tokens == len(expected) + 2
        expected += [*ids(2, 7700 + i), *result.token_ids]
    state = session.get()
    assert list(state.token_ids) == expected and state.num_turns == len(won) >= 1
    session.delete()
