"""How tokens are told together."""

import threading

from icarus.engine.events import Account, Failed, Finished, PromptRead, Sampled
from icarus.types import FinishReason
from icarus.worker.event_queue import EventQueue, Tokens

ACCOUNT = Account(1, 0, 0, {}, 1)
READ, END = PromptRead(ACCOUNT), Finished(FinishReason.LENGTH, ACCOUNT, 0)


async def told(min_tokens: int, events) -> list:
    """What comes out, tokens as lists of their ids."""
    queue = EventQueue(min_tokens)
    engine = threading.Thread(target=lambda: [queue.put(event) for event in events])
    engine.start()
    out = []
    while not out or out[-1] is not events[-1]:
        event = await queue.get()
        out.append([entry.token_id for entry in event.sampled] if isinstance(event, Tokens) else event)
    engine.join()
    return out


async def test_the_first_token_comes_alone_and_the_last_ones_with_the_end():
    events = [READ, *map(Sampled, range(8)), END]
    assert await told(3, events) == [READ, [0], [1, 2, 3], [4, 5, 6], [7], END]
    assert await told(100, events) == [READ, [0], [1, 2, 3, 4, 5, 6, 7], END]


async def test_every_token_as_it_comes():
    for least in (0, 1):
        assert await told(least, [READ, Sampled(5), Sampled(6), END]) == [READ, [5], [6], END]


async def test_what_was_held_comes_before_a_failure():
    failure = Failed(RuntimeError("lost"))
    assert await told(4, [READ, *map(Sampled, range(3)), failure]) == [READ, [0], [1, 2], failure]
