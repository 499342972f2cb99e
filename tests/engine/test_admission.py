"""Whatever makes room lets in who waits, at once: an idle engine takes no step that would."""

import pytest
from engine.harness import BLOCK_SIZE, Harness, Turn

from icarus.engine.engine import Engine
from icarus.engine.events import Failed, Finished
from icarus.errors import InvalidInputError, UnavailableError
from icarus.types import SamplingParams

PROMPT = list(range(10, 42))
OTHER = list(range(50, 58))


@pytest.fixture
def harness(base):
    return Harness(base, num_blocks=8)


def landing(harness: Harness, num_blocks: int = 8) -> Turn:
    """A turn that waits for a read into its blocks."""
    return harness.submit(PROMPT[: num_blocks * BLOCK_SIZE], prefill_only=True, await_landing=True)


def leased(harness: Harness) -> Turn:
    """A prefill whose blocks are leased."""
    turn = harness.submit(PROMPT, prefill_only=True)
    harness.run()
    return turn


def waiting(harness: Harness) -> Turn:
    turn = harness.submit(OTHER, max_tokens=4)
    assert not turn.events and not harness.engine.has_work
    return turn


def runs(harness: Harness, turn: Turn) -> bool:
    assert turn.admitted and harness.engine.has_work
    harness.run()
    return isinstance(turn.ended, Finished)


def test_the_end_of_a_landing_turn(harness):
    holder = landing(harness)
    turn = waiting(harness)
    harness.engine.abort(holder.request.request_id)
    assert runs(harness, turn)


def test_a_read_that_hangs_under_a_turn_that_needs_the_whole_pool(harness):
    holder = landing(harness)
    turn = waiting(harness)
    harness.engine.abandon_read(holder.request.request_id, holder.request.block_ids[:1])
    assert isinstance(holder.ended, Failed) and isinstance(holder.ended.error, UnavailableError)
    assert runs(harness, turn)


def test_the_end_of_a_read_that_hung(harness):
    reading, _ = landing(harness, 4), landing(harness, 4)
    turn, blocks = waiting(harness), list(reading.request.block_ids)
    harness.engine.abort(reading.request.request_id, blocks)
    assert not turn.events
    harness.engine.settle(blocks)
    assert runs(harness, turn)


def test_the_release_of_a_lease(harness):
    lease_id = leased(harness).ended.grant.lease_id
    turn = waiting(harness)
    harness.engine.release_lease(lease_id, harness.clock.now)
    assert runs(harness, turn)


def test_the_end_of_a_lease_that_nobody_released(harness):
    leased(harness)
    turn = waiting(harness)
    harness.clock.now = 10.5
    harness.engine.expire_leases()
    assert runs(harness, turn)


def test_what_just_fits_is_taken(base):
    harness = Harness(base, num_blocks=4)
    assert runs(harness, harness.submit(OTHER, max_tokens=9)), "17 tokens, the last of which has no KV"
    going_on = harness.submit(PROMPT[:12], sampling=SamplingParams(max_tokens=9), num_earlier_output=4)
    assert runs(harness, going_on) and len(going_on.output) == 5
    assert runs(harness, harness.submit(PROMPT[:16], sampling=SamplingParams(max_tokens=4), num_earlier_output=4))
    harness.lender._max_leased_blocks = 4
    harness.submit(PROMPT[:18], prefill_only=True)
    harness.run()
    assert Engine.state(harness.engine).leased_blocks == 4
    for too_long in ({"max_tokens": 10}, {"prefill_only": True}):
        with pytest.raises(InvalidInputError, match="need 5 blocks of 4"):
            harness.submit(OTHER if "max_tokens" in too_long else PROMPT[:20], **too_long)


def test_a_turn_says_how_far_its_blocks_reach_in_the_reports(harness):
    turn = harness.generate(OTHER, max_tokens=4)
    assert turn.ended.block_sequence == harness.pool.changes.next_sequence == 2
