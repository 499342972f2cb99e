"""The policy by itself: who is let in, who comes first, who gives way."""

import itertools
from types import SimpleNamespace
from typing import cast

import pytest

from icarus.adapters.lora import LoraWeights
from icarus.cache.hashing import root_hash
from icarus.cache.pool import BlockPool
from icarus.engine.request import Phase, Request
from icarus.engine.scheduler import ScheduledRows, Scheduler
from icarus.engine.step_report import RowKind, count_rows
from icarus.types import AdapterMode, RequestId, SamplingParams

_serial = itertools.count()


def request(num_tokens: int, mode: AdapterMode | None = None) -> Request:
    """Its tokens are nobody else's. `mode`: of its specialist; the base's where there is none."""
    serial = next(_serial)
    return Request(
        request_id=RequestId(f"turn-{serial}"),
        token_ids=list(range(1000 * serial, 1000 * serial + num_tokens)),
        adapter=cast(LoraWeights, SimpleNamespace(mode=mode)) if mode else None,
        writer="",
        sampling=SamplingParams(max_tokens=100),
        root=root_hash("fingerprint", "default"),
        block_size=4,
        sink=lambda event: None,
    )


@pytest.fixture
def new_scheduler():
    def make(num_blocks: int = 64, max_batch_tokens: int = 16, max_running: int = 8) -> Scheduler:
        return Scheduler(BlockPool(num_blocks), max_batch_tokens, max_running, 8, prefix_reuse=True)

    return make


def run(scheduler: Scheduler, *requests: Request) -> None:
    for one in requests:
        scheduler.add(one)
        assert scheduler.admit() == [one]
        scheduler.start(one)


def decoding(one: Request) -> Request:
    """As if it had all its KV and had just sampled a token."""
    one.num_kv = len(one.token_ids)
    one.token_ids.append(7)
    return one


def test_what_lands_counts_among_those_that_run(new_scheduler):
    scheduler, requests = new_scheduler(max_running=2), [request(4) for _ in range(3)]
    for one in requests:
        scheduler.add(one)
    assert scheduler.admit() == requests[:2]
    scheduler.start(requests[0])
    assert scheduler.admit() == []
    scheduler.remove(requests[1])
    assert scheduler.admit() == requests[2:]


def test_decodes_come_before_an_older_prefill_which_gets_the_rows_that_are_left(new_scheduler):
    scheduler, prefill, decode = new_scheduler(max_batch_tokens=16), request(100), request(8)
    run(scheduler, prefill, decode)
    decoding(decode)
    rows = [(rows.request, rows.num_writes, rows.sample) for rows in scheduler.schedule()]
    assert rows == [(decode, 1, True), (prefill, 15, False)], "the base samples from the row that writes"


def test_a_batch_never_has_more_rows_than_it_may(new_scheduler):
    scheduler = new_scheduler(max_batch_tokens=16)
    run(scheduler, *(request(6) for _ in range(4)))
    scheduled = scheduler.schedule()
    assert [(rows.num_writes, rows.sample) for rows in scheduled] == [(6, True), (6, True), (4, False)]
    assert sum(rows.num_rows for rows in scheduled) == 16


def compute(scheduler: Scheduler) -> list[ScheduledRows]:
    """A step; what it samples is appended."""
    scheduled = scheduler.schedule()
    for rows in scheduled:
        rows.request.num_kv += rows.num_writes
        rows.request.token_ids += [7] * rows.sample
    return scheduled


@pytest.mark.parametrize(
    ("mode", "num_rows", "kind"),
    [(None, 1, RowKind.SINGLE), (AdapterMode.PRIVATE, 1, RowKind.SINGLE), (AdapterMode.SHARED, 2, RowKind.PAIRED)],
)
def test_all_that_decode_get_their_rows_in_every_step_and_a_prefill_the_others(new_scheduler, mode, num_rows, kind):
    scheduler, prefill = new_scheduler(max_batch_tokens=16, max_running=8), request(20)
    decodes = [request(8, mode) for _ in range(7)]
    run(scheduler, *decodes, prefill)
    for one in decodes:
        decoding(one)
    for _ in range(2):
        scheduled = compute(scheduler)
        assert [rows.request for rows in scheduled] == [*decodes, prefill]
        assert all(rows.sample and rows.num_rows == num_rows for rows in scheduled[:7])
        assert scheduled[7].num_writes == 16 - 7 * num_rows
        counted = count_rows(scheduled)
        assert counted[kind] == 7 and counted.total() + counted[RowKind.PAIRED] == 16


def test_a_chunk_that_leaves_no_row_to_read_is_sampled_in_the_next_step(new_scheduler):
    scheduler, one = new_scheduler(max_batch_tokens=16), request(16, AdapterMode.SHARED)
    run(scheduler, one)
    steps = [(rows.num_writes, rows.has_read_row) for _ in range(3) for rows in compute(scheduler)]
    assert steps == [(16, False), (0, True), (1, True)]


def test_one_whose_blocks_still_land_does_not_make_an_older_one_give_its_own_up(new_scheduler):
    scheduler, old, young = new_scheduler(num_blocks=4), request(8), request(4)
    run(scheduler, old)
    scheduler.add(young)
    assert scheduler.admit() == [young]
    decoding(old)
    for _ in range(4):
        assert [rows.request for rows in compute(scheduler)] == [old]
    assert not scheduler.schedule() and scheduler.running == [old] and len(old.block_ids) == 3
    scheduler.start(young)
    assert [rows.request for rows in scheduler.schedule()] == [old]
    assert list(scheduler.waiting) == [young] and len(old.block_ids) == 4


def test_the_youngest_gives_its_blocks_up_and_waits_before_all_others(new_scheduler):
    scheduler, old, young, late = new_scheduler(num_blocks=6, max_batch_tokens=64), request(8), request(8), request(8)
    run(scheduler, old, young)
    scheduler.add(late)
    assert scheduler.admit() == []
    old.token_ids += range(12)
    assert [rows.request for rows in scheduler.schedule()] == [old]
    assert scheduler.running == [old] and list(scheduler.waiting) == [young, late]
    assert young.phase == Phase.WAITING and not young.block_ids and scheduler.preemptions == 1
