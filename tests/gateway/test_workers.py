"""The table by itself, on a clock of the test's."""

import asyncio

import pytest
from icarus_gateway.cluster.block_reports import BlockReports
from icarus_gateway.cluster.worker import Heartbeat, WorkerInfo
from icarus_gateway.cluster.workers import WorkerTable

from icarus.cache.changes import BlockChange
from icarus.cache.index import PrefixIndex
from icarus.errors import FailedPreconditionError, NotFoundError, UnavailableError
from icarus.rpc.messages import PROTOCOL_VERSION
from icarus.types import AdapterInfo, AdapterMode, BlockHash, Role, WorkerId


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def info(name: str, instance: str = "1", **changes) -> WorkerInfo:
    values = {
        "role": Role.DECODE,
        "address": "127.0.0.1:1",
        "base_model": "base",
        "base_digest": "b",
        "cache_fingerprint": "f",
        "block_size": 16,
        "num_blocks": 8,
        "context_length": 64,
    } | changes
    return WorkerInfo(WorkerId(name), f"{name}-{instance}", **values)


@pytest.fixture
async def table():
    table = WorkerTable("base", heartbeat_seconds=1.0, max_engine_age_seconds=60.0, clock=Clock())
    yield table
    await table.close()


def names(table: WorkerTable) -> list[str]:
    return [worker.worker_id for worker in table.live()]


async def test_three_missed_heartbeats_and_it_is_left_out(table):
    table.register(info("d1"), PROTOCOL_VERSION, [])
    worker = table.register(info("d2"), PROTOCOL_VERSION, [])
    table._clock.now += 3
    table.beat(WorkerId("d1"), "d1-1", Heartbeat(), [])
    assert names(table) == ["d1", "d2"]
    table._clock.now += 0.1
    assert names(table) == ["d1"] and not table.is_lost(worker)
    table._clock.now += 7
    assert table.is_lost(worker)
    table.beat(WorkerId("d2"), "d2-1", Heartbeat(), [])
    assert names(table) == ["d2"]
    table._clock.now += 61
    assert table.forget_silent() == ["d1", "d2"]
    with pytest.raises(NotFoundError, match="register first"):
        table.beat(WorkerId("d2"), "d2-1", Heartbeat(), [])
    with pytest.raises(UnavailableError, match="icarus serve decode"):
        table.require_live(Role.DECODE)


async def test_a_draining_worker_takes_nothing_new_and_is_not_lost(table):
    worker = table.register(info("d1"), PROTOCOL_VERSION, [])
    table.beat(WorkerId("d1"), "d1-1", Heartbeat(draining=True), [])
    assert not names(table) and not table.is_lost(worker)


async def test_a_draining_gateway_does_not_take_silence_for_death(table):
    worker = table.register(info("d1"), PROTOCOL_VERSION, [])
    table.stop_listening()
    table._clock.now += 100
    assert names(table) == ["d1"] and not table.is_lost(worker)


async def test_a_worker_of_another_model_has_no_place_while_the_others_are_not_lost(table):
    worker = table.register(info("d1"), PROTOCOL_VERSION, [])
    stranger = info("d2", base_digest="other")
    worker.failed = True
    table._clock.now += 9
    assert not table.live()
    with pytest.raises(FailedPreconditionError, match="base_digest"):
        table.register(stranger, PROTOCOL_VERSION, [])
    table._clock.now += 2
    table.register(stranger, PROTOCOL_VERSION, [])
    with pytest.raises(FailedPreconditionError, match="base_digest"):
        table.beat(WorkerId("d1"), "d1-1", Heartbeat(), [])
    assert names(table) == ["d2"]
    table._clock.now += 11
    table.beat(WorkerId("d1"), "d1-1", Heartbeat(), [])
    assert names(table) == ["d1"]


async def test_a_hung_engine_is_left_out_and_lost(table):
    worker = table.register(info("d1"), PROTOCOL_VERSION, [])
    table.beat(WorkerId("d1"), "d1-1", Heartbeat(engine_age_seconds=61), [])
    assert names(table) == [] and table.is_lost(worker)
    table.beat(WorkerId("d1"), "d1-1", Heartbeat(engine_age_seconds=0.1), [])
    assert names(table) == ["d1"]


async def test_a_failed_call_leaves_it_out_until_the_next_heartbeat(table):
    table.register(info("d1"), PROTOCOL_VERSION, []).failed = True
    assert names(table) == []
    table.beat(WorkerId("d1"), "d1-1", Heartbeat(), [])
    assert names(table) == ["d1"]


async def test_a_worker_that_registers_again_is_as_it_says_it_is_now(table):
    """It lost touch, and did not restart."""
    adapter = AdapterInfo("math", "m", AdapterMode.SHARED, 4)
    worker = table.register(info("d1"), PROTOCOL_VERSION, [])
    worker.failed = True
    table._clock.now += 9
    assert table.register(info("d1"), PROTOCOL_VERSION, [adapter], adapters_revision=1) is worker
    assert names(table) == ["d1"] and table.adapters() == {"math": adapter}


async def test_the_connection_to_a_replaced_worker_is_closed(table):
    first = table.register(info("d1"), PROTOCOL_VERSION, [])
    table.register(info("d1", "2"), PROTOCOL_VERSION, [])
    await table.close_unused()
    with pytest.raises(UnavailableError, match="worker d1 has left or was replaced"):
        first.connection.open_decode()


async def test_a_worker_must_be_silent_twice_to_be_given_up(monkeypatch):
    table = WorkerTable("base", heartbeat_seconds=0.01, max_engine_age_seconds=60.0, clock=Clock())
    worker, answer = table.register(info("d1"), PROTOCOL_VERSION, []), asyncio.Future()
    looks = [True, False, True]

    def is_lost(_) -> bool:
        if not looks:
            answer.set_result("here")
        return bool(looks) and looks.pop(0)

    monkeypatch.setattr(table, "is_lost", is_lost)
    await asyncio.wait_for(table.wait_on(worker, answer), 20)
    assert answer.result() == "here"
    looks += [True, True]
    with pytest.raises(UnavailableError, match="worker d1 was not heard of any more"):
        await asyncio.wait_for(table.wait_on(worker, asyncio.Future()), 20)
    await table.close()


async def test_a_restart_replaces_and_a_repeated_register_does_not(table):
    first = table.register(info("d1"), PROTOCOL_VERSION, [])
    assert table.register(info("d1"), PROTOCOL_VERSION, []) is first
    second = table.register(info("d1", "2"), PROTOCOL_VERSION, [])
    assert table.is_lost(first) and not table.is_lost(second)
    with pytest.raises(NotFoundError):
        table.beat(WorkerId("d1"), "d1-1", Heartbeat(), [])


async def test_who_takes_leave_is_gone_at_once(table):
    worker = table.register(info("d1"), PROTOCOL_VERSION, [])
    with pytest.raises(NotFoundError):
        table.deregister(WorkerId("d1"), "d1-0")  # an earlier instance that ends late
    assert names(table) == ["d1"]
    table.deregister(WorkerId("d1"), "d1-1")
    assert table.known() == [] and table.is_lost(worker)
    assert table.register(info("d1", "2"), PROTOCOL_VERSION, []) is not worker


@pytest.mark.parametrize("field", ["base_digest", "cache_fingerprint", "block_size"])
async def test_a_worker_of_another_model_is_refused(table, field):
    other = {"base_digest": "B", "cache_fingerprint": "F", "block_size": 32}[field]
    secret = {"base_digest": "known", "cache_fingerprint": "known", "block_size": 12345}[field]
    table.register(info("d1", **{field: secret}), PROTOCOL_VERSION, [])
    with pytest.raises(
        FailedPreconditionError, match=rf"worker d2 .*{field} {other}.*worker d1 .*{info('d1').base_model}"
    ) as caught:
        table.register(info("d2", **{field: other}), PROTOCOL_VERSION, [])
    assert str(secret) not in str(caught.value), "anybody may ask"
    table.register(
        info("d1", "2", **{field: other}), PROTOCOL_VERSION, []
    )  # alone, it may come back with another model
    table._clock.now += 11
    table.register(info("d2"), PROTOCOL_VERSION, [])  # the dead have no say


async def test_a_worker_of_another_model_than_the_gateways_is_refused(table):
    """Also where it is the first one: it would compute on what another tokenizer made of the text."""
    with pytest.raises(FailedPreconditionError, match=r"worker d1 .*'old'.*gateway 'base'.*\[model\] name"):
        table.register(info("d1", base_model="old"), PROTOCOL_VERSION, [])
    assert table.known() == []


async def test_another_protocol_version_is_refused(table):
    with pytest.raises(FailedPreconditionError, match=f"protocol version {PROTOCOL_VERSION + 1}"):
        table.register(info("d1"), PROTOCOL_VERSION + 1, [])


async def test_load_counts_our_turns_at_once_and_those_of_others_by_heartbeat(table):
    worker = table.register(info("d1"), PROTOCOL_VERSION, [])
    with table.assigned(worker), table.assigned(worker):
        assert worker.load == 2
        table.beat(WorkerId("d1"), "d1-1", Heartbeat(num_requests=3), [])
        assert worker.load == 3
    assert worker.load == 1


async def test_a_heartbeat_that_crosses_the_end_of_a_turn_counts_it_as_nobodys(table):
    worker = table.register(info("d1"), PROTOCOL_VERSION, [])
    with table.assigned(worker):
        pass
    table.beat(WorkerId("d1"), "d1-1", Heartbeat(num_requests=1), [])
    assert worker.load == 0
    table.beat(WorkerId("d1"), "d1-1", Heartbeat(num_requests=1), [])
    assert worker.load == 1


async def test_adapters_are_those_of_the_live(table):
    adapter = AdapterInfo("math", "m", AdapterMode.SHARED, 4)
    table.register(info("d1"), PROTOCOL_VERSION, [adapter])
    assert table.adapters() == {"math": adapter}
    table.beat(WorkerId("d1"), "d1-1", Heartbeat(), [])
    assert table.adapters() == {}
    table.beat(WorkerId("d1"), "d1-1", Heartbeat(), [adapter])
    assert table.adapters() == {"math": adapter}
    table._clock.now += 4
    assert table.adapters() == {}


async def test_a_heartbeat_from_before_an_answer_does_not_undo_it(table):
    adapter = AdapterInfo("math", "digest", AdapterMode.SHARED, 8)
    worker = table.register(info("d1"), PROTOCOL_VERSION, [])
    worker.learn_adapters([adapter], revision=3)
    table.beat(WorkerId("d1"), "d1-1", Heartbeat(), [], adapters_revision=2)
    assert list(table.adapters()) == ["math"]
    table.beat(WorkerId("d1"), "d1-1", Heartbeat(), [], adapters_revision=4)
    assert table.adapters() == {}


async def test_answers_about_two_adapters_may_cross(table):
    one, other = (AdapterInfo(name, "digest", AdapterMode.SHARED, 8) for name in ("one", "other"))
    worker = table.register(info("d1"), PROTOCOL_VERSION, [])
    worker.learn_adapter(other, revision=3)
    worker.learn_adapter(one, revision=2)
    assert sorted(table.adapters()) == ["one", "other"]
    worker.learn_unloaded("other", revision=4)
    table.beat(WorkerId("d1"), "d1-1", Heartbeat(), [one, other], adapters_revision=3)
    assert list(table.adapters()) == ["one"]


@pytest.fixture
def reports(table):
    """Of `d1`, its instance "d1-1"."""
    table.register(info("d1"), PROTOCOL_VERSION, [])
    return BlockReports(PrefixIndex(), table)


async def test_waiting_for_reports(reports):
    change = [BlockChange(BlockHash(b"h" * 32), removed=False)]
    d1 = WorkerId("d1")
    assert await reports.wait_for(d1, 0, 0)
    assert not await reports.wait_for(d1, 1, 0.01)
    waiting = [asyncio.create_task(reports.wait_for(d1, n, 5)) for n in (1, 2)]
    await asyncio.sleep(0)
    assert await reports.changes(d1, "d1-1", 0, change) == 1
    assert await waiting[0] and not waiting[1].done()
    assert await reports.snapshot(d1, "d1-1", 2, []) == 2
    assert await waiting[1]


def many_hashes(start, stop):
    return [BlockHash(b"%032d" % i) for i in range(start, stop)]


async def test_other_tasks_run_during_a_long_report(reports):
    index, d1, rounds = reports.index, WorkerId("d1"), [0]

    async def count():
        while True:
            rounds[0] += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    changes = [BlockChange(block_hash, removed=False) for block_hash in many_hashes(0, 20_000)]
    first = asyncio.create_task(reports.changes(d1, "d1-1", 0, changes))
    snapshot = asyncio.create_task(reports.snapshot(d1, "d1-1", 20_005, many_hashes(10_000, 30_000)))
    later = asyncio.create_task(reports.changes(d1, "d1-1", 20_005, [BlockChange(many_hashes(0, 1)[0], removed=False)]))
    assert [await first, await snapshot, await later] == [20_000, 20_005, 20_006], "in the order in which they came"
    assert rounds[0] > 6 and index.num_blocks(d1) == 20_001
    counting.cancel()


@pytest.mark.parametrize("kind", ["changes", "snapshot"])
async def test_a_worker_that_is_dropped_during_its_report_leaves_nothing(reports, kind):
    index, d1 = reports.index, WorkerId("d1")
    hashes = many_hashes(0, 20_000)
    if kind == "changes":
        reporting = reports.changes(d1, "d1-1", 0, [BlockChange(block_hash, removed=False) for block_hash in hashes])
    else:
        reporting = reports.snapshot(d1, "d1-1", 20_000, hashes)
    reporting = asyncio.create_task(reporting)
    while not index.size:
        await asyncio.sleep(0)
    index.drop(d1)
    assert await reporting == 0 and index.size == 0


@pytest.mark.parametrize("goes", ["leaves", "is replaced"])
async def test_a_report_that_waited_until_its_worker_was_gone_is_of_nobody(table, reports, goes):
    index, d1, d2 = reports.index, WorkerId("d1"), WorkerId("d2")
    table.register(info("d2"), PROTOCOL_VERSION, [])
    long = asyncio.create_task(reports.snapshot(d1, "d1-1", 1, many_hashes(0, 20_000)))
    late = asyncio.create_task(reports.snapshot(d2, "d2-1", 1, many_hashes(30_000, 30_001)))
    while not index.size:
        await asyncio.sleep(0)
    if goes == "leaves":
        table.deregister(d2, "d2-1")
    else:
        table.register(info("d2", "2"), PROTOCOL_VERSION, [])
    index.drop(d2)
    await long
    with pytest.raises(NotFoundError, match="d2-1"):
        await late
    assert index.num_blocks(d2) == 0 and index.size == 20_000
