"""Turns without a network: whose they are, how long one waits for its caller, and how many are remembered."""

import asyncio

import pytest
from icarus_gateway.turns.events import Delta, End
from icarus_gateway.turns.runs import TurnCall, TurnRun, TurnRuns
from waiting import eventually

from icarus.cache.hashing import BlockNames, root_hash
from icarus.errors import NotFoundError
from icarus.types import FinishReason, Usage, WorkerId

END = End(FinishReason.LENGTH, Usage(), 0, WorkerId("d1"), None, None, BlockNames(root_hash("f", "default"), 4))


def turn(num_tokens, go_on=None):
    """Waits for `go_on` after its first token."""

    async def play(run):
        for i in range(num_tokens):
            run.emit(Delta((i,), str(i)))
            if go_on is not None:
                await go_on.wait()
        return END

    return play


async def test_a_turn_that_was_resumed_is_not_held_to_its_first_break(monkeypatch):
    go_on = asyncio.Event()
    run = TurnRun(turn(3, go_on), grace_seconds=0.1)
    first = run.watch(0, resumable=True)
    assert await anext(first) == Delta((0,), "0")
    await first.aclose()
    again = run.watch(0, resumable=True)
    assert await anext(again) == Delta((0,), "0")
    await asyncio.sleep(0.3)  # longer than the grace of that break
    go_on.set()
    events = [event async for event in again]
    assert [i for event in events[:-1] for i in event.token_ids] == [1, 2] and events[-1] == END


async def test_who_comes_late_gets_what_there_is_in_several_messages():
    """Other streams go on between them, and no message grows past a client's limit."""
    run = TurnRun(turn(600), grace_seconds=0)
    await run.task
    *deltas, end = [event async for event in run.watch(50, resumable=False)]
    assert [len(delta.token_ids) for delta in deltas] == [256, 256, 38] and end == END
    assert [i for delta in deltas for i in delta.token_ids] == list(range(50, 600))


async def play(runs, turn_id, num_tokens=2, tenant="default", resume_from=0):
    call = TurnCall(tenant, turn_id, b"", resume_from, resumable=False, min_delta_tokens=0)
    run = await runs.find_or_start(call, turn(num_tokens))
    async for _ in run.watch(resume_from, resumable=False):
        pass
    await asyncio.sleep(0)  # it is remembered in the next round of the loop
    return run


async def test_as_many_turns_are_kept_as_may_be():
    by_count = TurnRuns(max_kept=2, max_size=100, keep_seconds=60, grace_seconds=0)
    by_size = TurnRuns(max_kept=9, max_size=4, keep_seconds=60, grace_seconds=0)
    for runs in (by_count, by_size):
        first, second = await play(runs, "a"), await play(runs, "b")
        assert [await play(runs, turn_id, resume_from=1) for turn_id in "ab"] == [first, second]
        await play(runs, "c")
        assert await play(runs, "b", resume_from=1) is second
        with pytest.raises(NotFoundError):
            await play(runs, "a", resume_from=1)


async def test_a_turn_that_gave_way_to_others_is_not_forgotten_twice():
    troubles = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: troubles.append(context))
    runs = TurnRuns(max_kept=1, max_size=100, keep_seconds=0.05, grace_seconds=0)
    await play(runs, "a")
    await play(runs, "b")
    await eventually(lambda: not runs._kept)
    assert not troubles and runs._size == 0
