"""The engine against the oracle: batches, chunks, reuse, eviction, preemption, cancellation, transfer."""

import re
from types import SimpleNamespace

import pytest
import torch
from engine.harness import BLOCK_SIZE, Harness, Turn

from icarus.engine.engine import Engine
from icarus.engine.events import Failed, Finished, Prefilled
from icarus.engine.request import Landing, Phase
from icarus.engine.runner import Runner
from icarus.errors import FailedPreconditionError, InvalidInputError, OverloadedError, UnavailableError
from icarus.types import FinishReason, LeaseId, SamplingParams


def prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture
def harness(base):
    return Harness(base)


@pytest.mark.parametrize("length", [1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 31, 32, 33, 70])
@pytest.mark.parametrize("name", ["", "s0", "private"])
def test_greedy_equals_the_oracle_at_block_and_chunk_edges(harness, specialists, length, name):
    turn = harness.generate(prompt(length), specialists[name] if name else None)
    specialists.check_greedy(turn)
    assert turn.ended.reason == FinishReason.LENGTH
    assert turn.ended.account.kv_written_tokens == length + 7


def test_a_batch_of_four_specialists_zero_base_and_private(harness, specialists):
    names = ["s0", "s1", "s2", "s3", "zero", "", "private", "s0"]
    turns = [
        harness.submit(prompt(10 + 7 * i, seed=i), specialists[name] if name else None, max_tokens=12)
        for i, name in enumerate(names)
    ]
    harness.run()
    for turn in turns:
        specialists.check_greedy(turn)
    assert turns[4].request.token_ids == harness.generate(prompt(38, seed=4), max_tokens=12).request.token_ids


def test_prefill_is_chunked_between_decode_steps(base, specialists):
    harness = Harness(base, max_batch_tokens=16)
    decoding = harness.submit(prompt(8), specialists["s0"], max_tokens=20)
    harness.step()
    assert len(decoding.output) == 1
    prefilling = harness.submit(prompt(100, seed=1), specialists["s1"], max_tokens=4)
    for expected in range(2, 8):
        harness.step()
        assert len(decoding.output) == expected
        assert prefilling.output == []
    harness.run()
    specialists.check_greedy(decoding)
    specialists.check_greedy(prefilling)


def test_specialists_read_what_others_wrote(harness, specialists):
    history = prompt(22)
    written = 0
    for name in ["s0", "s1", "s2", "s0"]:
        turn = harness.generate(history, specialists[name], max_tokens=9)
        specialists.check_greedy(turn)
        history = [*turn.request.token_ids, *prompt(5, seed=len(history))]
        written += turn.ended.account.kv_written_tokens
    account = turn.ended.account
    assert account.local_tokens == (turn.request.num_prompt - 6) // BLOCK_SIZE * BLOCK_SIZE
    assert 0 < account.cross_adapter_tokens < account.local_tokens
    assert account.computed_tokens + account.local_tokens == turn.request.num_prompt
    unique = len(turn.request.token_ids) - 1
    assert written == harness.model.kv_rows_written
    assert written <= unique + 4 * BLOCK_SIZE


def test_without_reuse_the_same_chain_computes_everything_again(base, specialists):
    harness = Harness(base, prefix_reuse=False)
    history = prompt(22)
    for name in ["s0", "s1", "s2"]:
        turn = harness.generate(history, specialists[name], max_tokens=9)
        history = [*turn.request.token_ids, *prompt(5)]
    unique = len(turn.request.token_ids) - 1
    assert harness.model.kv_rows_written > unique + 3 * BLOCK_SIZE
    assert turn.ended.account.local_tokens == 0


@pytest.mark.parametrize("name", ["", "s0", "private"])
def test_a_wholly_cached_prompt_takes_one_read_only_row(harness, specialists, name):
    adapter = specialists[name] if name else None
    first = harness.generate(prompt(8 * BLOCK_SIZE), adapter)
    before = harness.model.kv_rows_written
    again = harness.generate(prompt(8 * BLOCK_SIZE), adapter)
    assert again.output == first.output
    assert again.ended.account.computed_tokens == 0
    assert harness.model.kv_rows_written - before == again.ended.account.kv_written_tokens <= 7
    specialists.check_greedy(again)


def test_private_kv_is_never_shared(harness, specialists):
    harness.generate(prompt(40), specialists["private"])
    assert harness.generate(prompt(40), specialists["s0"]).ended.account.local_tokens == 0
    again = harness.generate(prompt(40), specialists["private"])
    assert (again.ended.account.local_tokens, again.ended.account.cross_adapter_tokens) == (40, 0)
    specialists.check_greedy(again)


def test_private_caches_would_hold_a_block_for_each_of_its_users(harness, specialists):
    for adapter in (None, specialists["s0"], specialists["s1"], specialists["s0"], specialists["private"]):
        harness.generate(prompt(8 * BLOCK_SIZE), adapter, max_tokens=1)
    state = harness.engine.check()
    assert (state.pool.cached, state.private_blocks) == (8 + 8, 3 * 8 + 8)


def test_kv_is_byte_equal_whoever_is_served(base, specialists):
    pools = []
    for name in ["s0", "s1", "zero"]:
        harness = Harness(base)
        turn = harness.submit(prompt(29), specialists[name], max_tokens=1)
        blocks = list(turn.request.block_ids)
        harness.run()
        pools.append(harness.kv.tensor[blocks].clone())
    assert pools[0].abs().sum() > 0
    assert torch.equal(pools[0], pools[1])
    assert torch.equal(pools[0], pools[2])


def test_eviction_takes_unreferenced_blocks_only(base, specialists):
    harness = Harness(base, num_blocks=12)
    long = harness.submit(prompt(16), specialists["s0"], max_tokens=16)
    for seed in range(1, 6):
        harness.submit(prompt(12, seed), specialists["s1"], max_tokens=2)
    harness.run()
    assert harness.pool.evictions > 0
    specialists.check_greedy(long)


def test_a_preempted_request_finishes_correctly(base, specialists):
    harness = Harness(base, num_blocks=16)
    turns = [harness.submit(prompt(12, i), specialists[f"s{i}"], max_tokens=30) for i in range(4)]
    harness.run()
    assert harness.scheduler.preemptions > 0
    for turn in turns:
        assert len(turn.output) == 30
        specialists.check_greedy(turn)
    written = sum(turn.ended.account.kv_written_tokens for turn in turns)
    assert written == harness.model.kv_rows_written
    assert all(turn.ended.account.computed_tokens == 12 for turn in turns), "what was computed anew is no prompt"


def test_sampling_survives_preemption_and_batching(base, specialists):
    sampling = SamplingParams(max_tokens=30, temperature=1.2, top_p=0.9, top_k=40, seed=7)
    alone = Harness(base).generate(prompt(12), specialists["s3"], sampling=sampling)
    crowded = Harness(base, num_blocks=16)
    others = [crowded.submit(prompt(12, i), specialists["s1"], max_tokens=30) for i in (1, 2)]
    turn = crowded.submit(prompt(12), specialists["s3"], sampling=sampling)
    crowded.run()
    assert crowded.scheduler.preemptions > 0
    assert turn.output == alone.output
    assert all(isinstance(other.ended, Finished) for other in others)
    reseeded = SamplingParams(max_tokens=30, temperature=1.2, seed=8)
    assert Harness(base).generate(prompt(12), specialists["s3"], sampling=reseeded).output != alone.output


def test_output_of_an_earlier_attempt_goes_on(base, specialists):
    sampling = SamplingParams(max_tokens=10, temperature=0.8, seed=3)
    whole = Harness(base).generate(prompt(12), specialists["s1"], sampling=sampling)
    rest = Harness(base).generate(
        [*prompt(12), *whole.output[:4]], specialists["s1"], sampling=sampling, num_earlier_output=4
    )
    assert rest.output == whole.output[4:]


def test_stop_tokens_end_the_turn_and_belong_to_it(harness, specialists):
    greedy = harness.generate(prompt(9), specialists["s0"]).output
    stop = SamplingParams(max_tokens=8, stop_token_ids=frozenset({greedy[3]}))
    turn = harness.generate(prompt(9), specialists["s0"], sampling=stop)
    assert turn.output == greedy[: greedy.index(greedy[3]) + 1]
    assert turn.ended.reason == FinishReason.STOP


def test_abort_frees_everything_in_every_phase(base, specialists):
    harness = Harness(base, num_blocks=16)
    running = harness.submit(prompt(40), specialists["s0"])
    landing = harness.submit(prompt(8, 1), specialists["s0"], await_landing=True)
    waiting = harness.submit(prompt(40, 2), specialists["s0"])
    harness.step()
    phases = [turn.request.phase for turn in (running, landing, waiting)]
    assert phases == [Phase.RUNNING, Phase.LANDING, Phase.WAITING]
    for turn in (waiting, landing, running):
        harness.engine.abort(turn.request.request_id)
        harness.engine.check()
    assert harness.engine.check().pool.used == 0
    specialists.check_greedy(harness.generate(prompt(9), specialists["s1"]))


def test_a_prefill_whose_caller_left_at_the_last_moment_keeps_no_lease(harness):
    turn = harness.submit(prompt(20), prefill_only=True)
    harness.run()
    assert harness.engine.check().leased_blocks == 5
    harness.engine.abort(turn.request.request_id)
    assert harness.engine.check().pool.used == 0


def test_a_prefill_can_be_given_back_by_the_id_that_was_asked_for(harness):
    """Its answer got lost."""
    harness.submit(prompt(20), prefill_only=True, lease_id=LeaseId("asked"))
    harness.run()
    harness.engine.release_lease(LeaseId("asked"), harness.clock.now)
    assert harness.engine.check().pool.used == 0


def test_a_turn_ended_early_is_whole(harness, specialists):
    turn = harness.submit(prompt(9), specialists["s0"], max_tokens=50)
    for _ in range(4):
        harness.step()
    harness.engine.finish(turn.request.request_id)
    assert turn.ended.reason == FinishReason.STOP
    assert harness.engine.check().pool.used == 0


def test_blocks_land_from_another_engine(base, specialists):
    owner, reader = Harness(base), Harness(base)
    history = owner.generate(prompt(30), specialists["s0"], max_tokens=9).request.token_ids
    tokens = [*history, *prompt(6, 1)]
    turn = reader.submit(tokens, specialists["s1"], num_source_blocks=9)
    assert turn.request.phase == Phase.LANDING
    grant = owner.engine.acquire_lease(turn.admitted.block_hashes, 0)
    assert len(grant.block_ids) == 9
    reader.read_from(owner, grant.block_ids, turn.admitted.block_ids[:9])
    owner.engine.release_lease(grant.lease_id, owner.clock.now)
    reader.engine.land(turn.request.request_id, Landing(grant.writers, 9 * BLOCK_SIZE))
    reader.run()
    specialists.check_greedy(turn)
    account = turn.ended.account
    assert (account.local_tokens, account.remote_tokens) == (0, 36)
    assert account.cross_adapter_tokens == 36
    assert account.kv_written_tokens == len(tokens) - 36 + 7
    assert owner.engine.check().pool.used == 0
    state = reader.engine.check()
    assert state.private_blocks == state.pool.cached, "in this pool one specialist alone used them"


def test_who_reads_blocks_from_another_worker_is_their_user(harness, specialists):
    turn = harness.submit(prompt(32), specialists["s0"], num_source_blocks=8, max_tokens=1)
    harness.engine.land(turn.request.request_id, Landing(("s1",) * 8, 32))
    harness.kv.tensor.zero_()  # nothing was really read: only the books matter here
    harness.run()
    harness.generate(prompt(32), specialists["s1"], max_tokens=1)
    state = harness.engine.check()
    assert (state.pool.cached, state.private_blocks) == (8, 16)


@pytest.mark.parametrize("name", ["", "s0", "private"])
def test_a_prefilled_prompt_lands_and_its_last_row_is_read_only(base, specialists, name):
    adapter = specialists[name] if name else None
    prefiller, decoder = Harness(base), Harness(base)
    tokens = prompt(8 * BLOCK_SIZE)
    prefill = prefiller.submit(tokens, adapter, prefill_only=True)
    prefiller.run()
    assert isinstance(prefill.ended, Prefilled)
    grant = prefill.ended.grant
    turn = decoder.submit(tokens, adapter, await_landing=True)
    decoder.read_from(prefiller, grant.block_ids, turn.admitted.block_ids)
    decoder.engine.land(turn.request.request_id, Landing(grant.writers, 0))
    decoder.run()
    specialists.check_greedy(turn)
    assert turn.ended.account.computed_tokens == len(tokens)
    assert turn.ended.account.kv_written_tokens == 7
    assert prefiller.engine.check().leased_blocks == 8
    prefiller.engine.release_lease(grant.lease_id, prefiller.clock.now)
    assert prefiller.engine.check().pool.used == 0


def test_a_cached_prefill_is_granted_at_once_from_the_asked_block_on(harness):
    harness.generate(prompt(20))
    turn = harness.submit(prompt(20), prefill_only=True, lease_from_block=2)
    assert turn.ended.grant.first_block == 2
    assert len(turn.ended.grant.block_ids) == 3
    assert turn.ended.account.local_tokens == 20


def test_blocks_that_two_prefills_make_at_once_carry_the_name_of_the_one_that_each_was_for(harness, specialists):
    turns = [harness.submit(prompt(20), prefill_only=True, adapter=specialists[name]) for name in ("s0", "s1")]
    harness.run()
    assert [turn.ended.grant.writers for turn in turns] == [("s0",) * 5, ("s1",) * 5]


def test_the_cap_on_leased_blocks_counts_each_block_once_and_no_block_that_the_reader_has(base):
    harness = Harness(base)
    harness.lender._max_leased_blocks = 6
    turn = harness.submit(prompt(40), prefill_only=True, lease_from_block=5)
    harness.run()
    assert len(turn.ended.grant.block_ids) == 5
    hashes = turn.request.block_hashes
    for _ in range(2):
        assert harness.engine.acquire_lease(hashes[5:6], 5).block_ids == turn.ended.grant.block_ids[:1]
    assert harness.engine.acquire_lease(hashes[4:], 4).block_ids[1:] == turn.ended.grant.block_ids
    with pytest.raises(OverloadedError, match=r"6 blocks are leased .* of at most 6; 1 more"):
        harness.engine.acquire_lease(hashes, 0)


def test_of_a_prefix_beyond_the_cap_the_leading_blocks_are_lent(base):
    harness = Harness(base)
    harness.lender._max_leased_blocks = 6
    hashes = harness.generate(prompt(40), max_tokens=1).request.block_hashes
    grants = [harness.engine.acquire_lease(hashes[first:], first) for first in (0, 2, 3)]
    assert [len(grant.block_ids) for grant in grants] == [6, 4, 3]
    assert {grant.last_block_hash for grant in grants} == {hashes[5]}
    with pytest.raises(OverloadedError, match="6 blocks are leased"):
        harness.engine.acquire_lease(hashes[6:], 6)
    assert harness.engine.check().leased_blocks == 6


def test_a_reader_gets_none_of_the_blocks_that_prefills_were_promised(base):
    harness = Harness(base)
    harness.lender._max_leased_blocks = 6
    hashes = harness.generate(prompt(8), max_tokens=1).request.block_hashes
    prefill = harness.submit(prompt(20, 1), prefill_only=True)
    assert len(harness.engine.acquire_lease(hashes, 0).block_ids) == 1
    with pytest.raises(OverloadedError, match="1 blocks are leased and 5 promised to prefills, of at most 6; 1 more"):
        harness.engine.acquire_lease(hashes[1:], 1)
    harness.run()
    assert len(prefill.ended.grant.block_ids) == 5


@pytest.mark.parametrize("end", [Engine.renew_lease, Engine.release_lease])
def test_a_lease_that_was_renewed_or_released_in_time_does_not_lapse_while_a_step_keeps_the_engine(harness, end):
    harness.generate(prompt(20))
    lease_id = harness.submit(prompt(20), prefill_only=True).ended.grant.lease_id
    harness.clock.now = 10.5
    end(harness.engine, lease_id, 9.9)
    harness.engine.expire_leases()
    assert harness.engine.state().leases_expired == 0


def test_a_grant_carries_the_name_of_its_last_block(harness):
    turn = harness.submit(prompt(20), prefill_only=True, lease_from_block=2)
    harness.run()
    assert turn.ended.grant.last_block_hash == turn.request.block_hashes[4]
    grant = harness.engine.acquire_lease([*turn.request.block_hashes[1:3], b"unknown"], 1)
    assert grant.last_block_hash == turn.request.block_hashes[2]
    assert harness.engine.acquire_lease([b"unknown"], 0).last_block_hash == b""


def test_a_lapsed_lease_frees_blocks_and_tells_its_reader(harness):
    harness.generate(prompt(20))
    turn = harness.submit(prompt(20), prefill_only=True)
    assert harness.engine.check().leased_blocks == 5
    harness.clock.now = 10.5
    harness.engine.expire_leases()
    assert harness.engine.check().pool.used == 0
    with pytest.raises(FailedPreconditionError, match="lapsed"):
        harness.engine.release_lease(turn.ended.grant.lease_id, harness.clock.now)
    assert harness.engine.state().leases_expired == 1


def test_an_abandoned_read_quarantines_its_blocks_and_the_turn_is_computed(base, specialists):
    harness = Harness(base, num_blocks=24)
    turn = harness.submit(prompt(30), specialists["s0"], num_source_blocks=7)
    target = turn.admitted.block_ids[:7]
    harness.engine.abandon_read(turn.request.request_id, target)
    assert harness.engine.check().pool.quarantined == 7
    assert not set(target) & set(turn.request.block_ids)
    harness.run()
    assert isinstance(turn.ended, Finished) and len(turn.output) == 8
    specialists.check_greedy(turn)
    harness.engine.settle(target)
    assert harness.engine.check().pool.quarantined == 0


def test_a_cancelled_read_keeps_its_blocks_until_it_settles(harness):
    turn = harness.submit(prompt(30), num_source_blocks=5)
    target = turn.admitted.block_ids[:5]
    harness.engine.abort(turn.request.request_id, target)
    counts = harness.engine.check().pool
    assert (counts.quarantined, counts.used) == (5, 0)
    harness.engine.settle(target)
    assert harness.engine.check().pool.free == counts.total


def hang_reads(harness, num_blocks: int) -> list:
    """Blocks under a read that does not settle, as a turn that left put them."""
    turn = harness.submit(prompt(num_blocks * BLOCK_SIZE, 99), num_source_blocks=num_blocks)
    blocks = turn.admitted.block_ids[:num_blocks]
    harness.engine.abort(turn.request.request_id, blocks)
    return blocks


def test_a_turn_that_outgrows_what_quarantine_leaves_fails_and_the_next_one_runs(base):
    harness = Harness(base, num_blocks=16)
    turn = harness.submit(prompt(12), max_tokens=40)
    hanging = hang_reads(harness, 8)
    harness.step()
    next_one = harness.submit(prompt(20, 1), max_tokens=4)
    harness.run()
    assert isinstance(turn.ended.error, UnavailableError) and "8 of this worker's 16" in str(turn.ended.error)
    assert 8 * BLOCK_SIZE <= len(turn.request.token_ids) < 10 * BLOCK_SIZE
    assert isinstance(next_one.ended, Finished)
    harness.engine.settle(hanging)


def test_a_prompt_that_does_not_fit_what_quarantine_leaves_fails_at_once_or_when_it_waits(base):
    harness = Harness(base, num_blocks=16)
    hanging = hang_reads(harness, 6)
    assert isinstance(harness.submit(prompt(41)).ended.error, UnavailableError)
    reading = harness.submit(prompt(4, 98), num_source_blocks=1)
    waiting, behind = harness.submit(prompt(40, 1), max_tokens=1), harness.submit(prompt(8, 2), max_tokens=1)
    assert not (waiting.events or behind.events), "ten blocks are enough, once they are free"
    last = reading.admitted.block_ids[:1]
    harness.engine.abort(reading.request.request_id, last)
    assert isinstance(waiting.ended.error, UnavailableError)
    harness.run()
    assert isinstance(behind.ended, Finished)
    harness.engine.settle([*hanging, *last])
    harness.generate(prompt(41, 3))


def preempt_and_evict(harness, request, num_left: int) -> None:
    """Takes a request's blocks; by the time it is let in again, the pool has `num_left` cached blocks."""
    harness.scheduler.preempt(request)
    harness.pool.release(harness.pool.allocate(harness.pool.num_available - num_left))
    harness.engine.resume_admission()


@pytest.mark.parametrize("num_remote", [0, 5])
def test_a_turn_that_starts_over_before_its_first_token_counts_what_it_finds_then(base, specialists, num_remote):
    harness = Harness(base, num_blocks=24)
    harness.generate(prompt(8 * BLOCK_SIZE), specialists["s0"], max_tokens=1)
    turn = harness.submit(prompt(60), specialists["s1"], num_source_blocks=15, max_tokens=2)
    assert turn.admitted.num_local_blocks == 8
    harness.engine.land(turn.request.request_id, Landing(("s2",) * num_remote, num_remote * BLOCK_SIZE))
    preempt_and_evict(harness, turn.request, num_left=8 + num_remote)
    account = turn.request.account
    assert (account.local_tokens, account.remote_tokens) == (32, num_remote * BLOCK_SIZE)
    preempt_and_evict(harness, turn.request, num_left=6)
    account = turn.request.account
    assert (account.local_tokens, account.remote_tokens, account.computed_tokens) == (24, 0, 36)
    assert account.written_under == {"s0": 24}
    harness.kv.tensor.zero_()  # nothing was really read: only the books matter here
    harness.run()
    assert turn.ended.account.written_under == {"s0": 24}


def sources(turn: Turn) -> tuple[int, int, int]:
    """Tokens of the prompt: (computed, local, remote)"""
    account = turn.request.account
    return account.computed_tokens, account.local_tokens, account.remote_tokens


def test_what_others_computed_while_a_read_hung_counts_as_found_here(base, specialists):
    harness = Harness(base, num_blocks=24)
    turn = harness.submit(prompt(32), specialists["s1"], num_source_blocks=8)
    harness.generate(prompt(32), specialists["s0"], max_tokens=1)
    harness.engine.abandon_read(turn.request.request_id, turn.admitted.block_ids)
    assert sources(turn) == (0, 32, 0)
    assert turn.request.account.written_under == {"s0": 32}


def test_what_was_computed_for_a_turn_counts_as_computed_when_it_finds_that_again(base):
    harness = Harness(base, num_blocks=24, max_batch_tokens=16)
    staged = harness.submit(prompt(32), num_source_blocks=8)
    harness.engine.land(staged.request.request_id, Landing(("s2",) * 8, 12))
    preempt_and_evict(harness, staged.request, num_left=8)
    assert sources(staged) == (20, 0, 12)
    harness.engine.abort(staged.request.request_id)
    own = harness.submit(prompt(40, 1))
    harness.step()
    preempt_and_evict(harness, own.request, num_left=4)
    assert own.request.num_named == 4 and sources(own) == (40, 0, 0)


def test_a_turn_that_is_finished_lets_the_next_one_in(base):
    harness = Harness(base, num_blocks=8)
    first = harness.submit(prompt(12), max_tokens=20)
    second = harness.submit(prompt(20, 1), max_tokens=4)
    harness.step()
    assert not second.events
    harness.engine.finish(first.request.request_id)
    assert second.admitted
    harness.run()
    assert isinstance(second.ended, Finished)


def test_cached_prefills_that_end_as_they_are_admitted_let_the_next_one_in(base):
    harness = Harness(base)
    harness.generate(prompt(20))
    harness.scheduler._max_running = 1
    running = harness.submit(prompt(8, 1))
    waiting = [harness.submit(prompt(20), prefill_only=True) for _ in range(3)]
    last = harness.submit(prompt(8, 2))
    harness.engine.finish(running.request.request_id)
    assert all(turn.ended for turn in waiting) and last.admitted
    harness.run()


def test_a_prefill_that_ends_as_it_lands_lets_the_next_one_in(base):
    harness = Harness(base)
    harness.scheduler._max_running = 1
    first = harness.submit(prompt(20), prefill_only=True, num_source_blocks=5)
    second = harness.submit(prompt(8, 1))
    harness.engine.land(first.request.request_id, Landing(("",) * 5, 20))
    assert first.ended and second.admitted
    harness.run()


def test_what_cannot_fit_is_refused_with_both_numbers(base):
    harness = Harness(base, num_blocks=8)
    with pytest.raises(InvalidInputError, match=r"38 tokens .* 10 blocks of 4; the pool of this worker has 8"):
        harness.submit(prompt(30), max_tokens=8)
    harness.generate(prompt(9))


def test_a_full_queue_and_a_full_lease_cap_push_back(base):
    harness = Harness(base, num_blocks=16)
    harness.lender._max_leased_blocks = 6
    harness.submit(prompt(20), prefill_only=True)
    with pytest.raises(OverloadedError, match="0 blocks are leased and 5 promised to prefills, of at most 6; 5 more"):
        harness.submit(prompt(20, 1), prefill_only=True)
    harness.run()
    with pytest.raises(OverloadedError, match="5 blocks are leased"):
        harness.submit(prompt(20, 1), prefill_only=True)
    for seed in range(40):
        try:
            harness.submit(prompt(40, seed), max_tokens=20)
        except OverloadedError as error:
            assert "32 requests wait" in str(error)
            break
    else:
        pytest.fail("the queue took everything")
    harness.engine.check()


def test_a_failing_step_fails_its_requests_and_nothing_else(harness, specialists, monkeypatch):
    turn = harness.submit(prompt(9), specialists["s0"])
    with monkeypatch.context() as patched:
        patched.setattr(harness.model, "forward", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
        harness.step()
    assert isinstance(turn.ended, Failed)
    assert harness.engine.check().pool.used == 0
    specialists.check_greedy(harness.generate(prompt(9), specialists["s0"]))


def test_a_device_out_of_memory_is_overload_and_the_next_step_is_computed(harness, specialists, monkeypatch):
    """Gateways take the turns elsewhere."""
    turns = [harness.submit(prompt(9, seed), specialists["s0"]) for seed in range(2)]
    with monkeypatch.context() as patched:
        patched.setattr(harness.model, "forward", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no room")))
        harness.step()
    for turn in turns:
        error = turn.ended.error
        assert isinstance(error, OverloadedError) and error.__context__ is None
        assert re.search(r"20 rows: lower \[engine\] max_batch_tokens or \[cache\] num_blocks", str(error))
    assert harness.engine.check().pool.used == 0
    specialists.check_greedy(harness.generate(prompt(9), specialists["s0"]))


def test_a_batch_that_fails_leaves_no_work_on_the_device(harness, monkeypatch):
    """Its requests' blocks go to others at once."""
    waited = []
    stream = SimpleNamespace(synchronize=lambda: waited.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    runner = Runner(harness.model, harness.kv, "cuda", cuda_graphs=False)
    monkeypatch.setattr(runner, "_forward", lambda plans: (_ for _ in ()).throw(torch.OutOfMemoryError("no room")))
    with pytest.raises(torch.OutOfMemoryError):
        runner.run([])
    assert waited == ["synchronize"]
