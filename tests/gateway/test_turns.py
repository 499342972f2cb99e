"""Turns through the real gateway against scripted workers: the edges of the protocol."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest
from waiting import eventually

from icarus.cache.hashing import block_hashes, child_hash, root_hash
from icarus.errors import InvalidInputError, OverloadedError
from icarus.rpc.status import error_from_rpc
from icarus.v1 import generation_pb2 as pb
from icarus.v1 import generation_service_pb2, session_service_pb2
from icarus.worker.v1 import registry_service_pb2

PROMPT = list(range(40, 50))
A, B, C, D = 65, 66, 67, 68


def tokens(*ids):
    return pb.Content(token_ids=pb.TokenIds(ids=ids))


def sampling(max_tokens=4, **fields):
    return pb.SamplingParams(max_tokens=max_tokens, ignore_eos=True, **fields)


def stateless(cluster, *, model="base", prompt=PROMPT, **fields):
    return cluster.generation.Generate(
        generation_service_pb2.GenerateRequest(model=model, content=tokens(*prompt), sampling=sampling(**fields))
    )


async def collect(stream):
    """(ids, text, the finished message)."""
    ids, text, finished = [], "", None
    async for response in stream:
        assert finished is None, "an event after the end"
        if response.event.HasField("delta"):
            ids += response.event.delta.token_ids
            text += response.event.delta.text
        else:
            finished = response.event.finished
    return ids, text, finished


async def fails(stream, code, told=""):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(stream)
    assert caught.value.code() is code, caught.value
    assert told in caught.value.details()
    return caught.value


async def new_session(cluster, *prompt, tenant=""):
    content = tokens(*prompt) if prompt else None
    request = session_service_pb2.CreateSessionRequest(content=content, tenant=tenant)
    return (await cluster.sessions.CreateSession(request)).session.session_id


def turn(cluster, session_id, *content, model="base", **fields):
    return cluster.sessions.GenerateTurn(
        session_service_pb2.GenerateTurnRequest(
            session_id=session_id,
            model=model,
            content=tokens(*content) if content else None,
            sampling=sampling(**fields),
        )
    )


async def history(cluster, session_id):
    session = (await cluster.sessions.GetSession(session_service_pb2.GetSessionRequest(session_id=session_id))).session
    return list(session.token_ids), session.num_turns


def show(model, ids):
    return model.tokenizer.decode(ids)


async def test_a_turn(cluster, model):
    worker = await cluster.add("d1", answer=[A, B, C, D])
    ids, text, finished = await collect(stateless(cluster, seed=9, temperature=0.5, top_k=3))
    assert ids == [A, B, C, D] and text == show(model, ids)
    assert finished.finish_reason == pb.FINISH_REASON_LENGTH and finished.seed == 9
    assert finished.route.decode_worker == "d1" and not finished.route.HasField("prefill_worker")
    usage = finished.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.computed_tokens) == (10, 4, 8)
    assert (usage.local_tokens, usage.remote_tokens, usage.cached_tokens, usage.cross_adapter_tokens) == (2, 0, 2, 1)
    assert (usage.kv_written_tokens, usage.transfer_reads, usage.transfer_bytes) == (12, 1, 100)
    begin = worker.script.begun[0]
    assert list(begin.token_ids) == PROMPT and begin.tenant == "default" and begin.turn_id
    assert (begin.sampling.seed, begin.sampling.top_k, begin.adapter, begin.await_prefill) == (9, 3, "", False)
    assert not worker.script.cancelled.is_set()


async def test_no_worker_and_unknown_model(cluster):
    await fails(stateless(cluster), grpc.StatusCode.UNAVAILABLE, "no decode worker")
    await cluster.add("p1", role="prefill")
    await fails(stateless(cluster, model="math"), grpc.StatusCode.UNAVAILABLE, "no decode worker")
    await cluster.add("d1", adapters={"math": "shared"}, answer=[A])
    await fails(stateless(cluster, model="maths"), grpc.StatusCode.NOT_FOUND, "'maths' is not here; there are: base")
    await collect(stateless(cluster, model="math"))
    assert cluster.fakes["d1"].script.begun[0].adapter == "math"


async def test_a_stop_string_ends_the_turn(cluster, model):
    answer = model.tokenizer.encode("one STOP two three four five six seven eight")
    worker = await cluster.add("d1", answer=answer, pause_after=len("one STOP"))
    session_id = await new_session(cluster, *PROMPT)
    reading = asyncio.create_task(collect(turn(cluster, session_id, max_tokens=40, stop=["STOP"])))
    await eventually(lambda: worker.script.finishes)
    worker.script.go_on.set()
    ids, text, finished = await reading
    assert text == "one " and show(model, ids) == "one STOP"
    assert finished.finish_reason == pb.FINISH_REASON_STOP and finished.usage.completion_tokens == len(ids)
    assert worker.script.finishes == 1 and not worker.script.cancelled.is_set()
    assert await history(cluster, session_id) == ([*PROMPT, *ids], 1)


async def test_text_that_was_held_back_comes_at_the_end(cluster, model):
    await cluster.add("d1", answer=model.tokenizer.encode("so ST"))
    ids, text, finished = await collect(stateless(cluster, max_tokens=5, stop=["STOP"]))
    assert text == "so ST" and len(ids) == 5 and finished.finish_reason == pb.FINISH_REASON_LENGTH


async def test_an_end_token_ends_the_turn(cluster, model):
    im_end = model.tokenizer.id_of("<|im_end|>")
    worker = await cluster.add("d1", answer=[A, im_end, B])
    request = generation_service_pb2.GenerateRequest(model="base", content=tokens(1))
    ids, text, finished = await collect(cluster.generation.Generate(request))
    assert ids == [A, im_end] and text == show(model, [A])
    assert finished.finish_reason == pb.FINISH_REASON_STOP
    assert list(worker.script.begun[0].sampling.stop_token_ids) == sorted(model.eos_token_ids)


@pytest.mark.parametrize("die_after", [0, 2, 3])
async def test_another_worker_goes_on_where_one_died(cluster, die_after):
    first = await cluster.add("d1", answer=[A, B, C, D], die_after=die_after)
    second = await cluster.add("d2", answer=[A, B, C, D])
    session_id = await new_session(cluster, *PROMPT)
    ids, _, finished = await collect(turn(cluster, session_id))
    assert ids == [A, B, C, D] and finished.route.decode_worker == "d2"
    begin = second.script.begun[0]
    assert list(begin.token_ids) == PROMPT + ids[:die_after] and begin.num_output_tokens == die_after
    assert begin.sampling.max_tokens == 4
    assert begin.sampling.seed == first.script.begun[0].sampling.seed == finished.seed
    usage = finished.usage
    assert usage.prompt_tokens == 10 == usage.computed_tokens + usage.local_tokens + usage.remote_tokens
    assert usage.completion_tokens == 4 and usage.kv_written_tokens == 8 + die_after + 4
    assert await history(cluster, session_id) == (PROMPT + ids, 1)
    await collect(stateless(cluster))
    assert len(first.script.begun) == 1  # left out until its next heartbeat
    await first.beat()
    assert [worker.worker_id for worker in cluster.table.live()] == ["d1", "d2"]


async def test_a_process_that_stops_in_mid_stream(cluster):
    first = await cluster.add("d1", answer=[A, B, C, D], stall_after=2)
    await cluster.add("d2", answer=[A, B, C, D])
    stream = stateless(cluster)
    reading = asyncio.create_task(collect(stream))
    await eventually(lambda: first.script.begun)
    await first.server.drain(0)
    ids, _, finished = await reading
    assert ids == [A, B, C, D] and finished.route.decode_worker == "d2"


async def test_a_worker_that_falls_silent(model, new_cluster):
    """The connection stands, but no heartbeat comes any more."""
    async with new_cluster(model, clock=lambda: 0.0, heartbeat_seconds=0.1) as cluster:
        silent = await cluster.add("d1", answer=[A, B, C, D], stall_after=2)
        reading = asyncio.create_task(collect(stateless(cluster)))
        await eventually(lambda: silent.script.begun)
        await cluster.add("d2", answer=[A, B, C, D])
        cluster.silence(silent)
        ids, _, finished = await reading
        assert ids == [A, B, C, D] and finished.route.decode_worker == "d2"
        await asyncio.wait_for(silent.script.cancelled.wait(), 5)


@asynccontextmanager
async def deaf_server(settings):
    """The address of one that takes connections in, and after its HTTP/2 `settings`, if any, reads no more."""

    async def hold(reader, writer):
        writer.write(settings)
        await over.wait()
        writer.close()

    over = asyncio.Event()
    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        over.set()
        server.close()


NO_SETTINGS, EMPTY_SETTINGS = b"", bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))


@pytest.mark.parametrize("lost", ["replaced", "silent"])
@pytest.mark.parametrize(
    ("settings", "prompt"),
    [(NO_SETTINGS, PROMPT), (EMPTY_SETTINGS, PROMPT), (EMPTY_SETTINGS, PROMPT * 30_000)],
    ids=["connecting", "answering", "writing"],
)
async def test_a_worker_that_is_lost_before_it_has_read_the_prompt(new_model, new_cluster, settings, prompt, lost):
    """While the connection is made; before the first answer; and with a prompt for which HTTP/2 has no room."""
    model = new_model(context_length=400_000)
    async with (
        deaf_server(settings) as address,
        new_cluster(model, clock=lambda: 0.0, heartbeat_seconds=0.1) as cluster,
    ):
        deaf = await cluster.add("d1")
        await deaf.register(address=address, instance_id="deaf")
        reading = asyncio.create_task(collect(stateless(cluster, prompt=prompt)))
        await eventually(lambda: cluster.table.live()[0].num_assigned)
        await asyncio.sleep(0.1)  # for as much of the prompt as is sent at all
        good = await cluster.add("d1" if lost == "replaced" else "d2", answer=[A, B, C, D])
        if lost == "silent":
            cluster.table.instance("d1", "deaf").last_seen -= 20 * cluster.table.heartbeat_seconds
        ids, *_ = await asyncio.wait_for(reading, 10)
        assert ids == [A, B, C, D] and len(good.script.begun) == 1


async def test_a_worker_that_drains_ends_what_it_has(cluster):
    draining = await cluster.add("d1", answer=[A, B, C, D], pause_after=2)
    reading = asyncio.create_task(collect(stateless(cluster)))
    await eventually(lambda: draining.script.begun)
    await draining.beat(draining=True)
    other = await cluster.add("d2", answer=[A, B, C, D])
    await collect(stateless(cluster, max_tokens=1))
    assert len(other.script.begun) == 1
    draining.script.go_on.set()
    ids, _, finished = await reading
    assert ids == [A, B, C, D] and finished.route.decode_worker == "d1" and len(draining.script.begun) == 1


@pytest.mark.parametrize("prefilled", [False, True])
async def test_what_a_turn_computed_itself_is_never_cached(cluster, prefilled):
    """The second attempt reads what the first had computed, or its prefill worker."""
    prompt = LONG if prefilled else PROMPT
    first = await cluster.add("d1", answer=[A, B, C, D], die_after=0 if prefilled else 2)
    await cluster.add("d2", answer=[A, B, C, D], remote_tokens=7)
    if prefilled:
        await cluster.add("p1", role="prefill")
    ids, _, finished = await collect(stateless(cluster, prompt=prompt))
    usage = finished.usage
    assert ids == [A, B, C, D] and first.script.begun and finished.route.decode_worker == "d2"
    cached = 0 if prefilled else 2
    assert (usage.computed_tokens, usage.local_tokens, usage.remote_tokens) == (len(prompt) - cached, cached, 0)
    assert usage.cross_adapter_tokens == (0 if prefilled else 1)


async def test_a_worker_that_dies_after_the_last_token(cluster):
    await cluster.add("d1", answer=[A, B, C, D], finish_lost=True)
    other = await cluster.add("d2", answer=[A, B, C, D])
    session_id = await new_session(cluster, *PROMPT)
    ids, _, finished = await collect(turn(cluster, session_id))
    assert ids == [A, B, C, D] and finished.finish_reason == pb.FINISH_REASON_LENGTH
    assert not other.script.begun and finished.usage.computed_tokens == 8
    assert await history(cluster, session_id) == (PROMPT + ids, 1)


async def test_when_all_die_the_history_stays(cluster):
    for name in ("d1", "d2"):
        await cluster.add(name, answer=[A, B, C, D], die_after=1)
    session_id = await new_session(cluster, *PROMPT)
    await fails(turn(cluster, session_id, 1, 2), grpc.StatusCode.UNAVAILABLE, "worker d2: gone")
    assert await history(cluster, session_id) == (PROMPT, 0)
    for fake in cluster.fakes.values():
        fake.script.die_after = None
        await fake.beat()
    ids, *_ = await collect(turn(cluster, session_id, 1, 2))
    assert await history(cluster, session_id) == ([*PROMPT, 1, 2, *ids], 1)


@pytest.mark.parametrize("die_at", [0, 2])
async def test_three_attempts_at_one_token_are_enough(cluster, die_at):
    for i in range(5):
        await cluster.add(f"d{i}", answer=[A, B, C, D], die_at=die_at)
    await fails(stateless(cluster), grpc.StatusCode.UNAVAILABLE, "gone")
    assert sum(len(fake.script.begun) for fake in cluster.fakes.values()) == 3


async def test_attempts_that_go_on_are_never_too_many(cluster):
    answer = [A, B, C, D] * 2
    for i in range(5):
        await cluster.add(f"d{i}", answer=answer, die_after=2)
    ids, *_ = await collect(stateless(cluster, max_tokens=8))
    assert ids == answer and sum(len(fake.script.begun) for fake in cluster.fakes.values()) == 4


async def test_cancelling_reaches_the_worker_and_keeps_the_history(cluster):
    worker = await cluster.add("d1", answer=[A, B, C, D], stall_after=1)
    session_id = await new_session(cluster, *PROMPT)
    stream = turn(cluster, session_id, 1)
    await stream.read()
    request = session_service_pb2.DeleteSessionRequest(session_id=session_id)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await cluster.sessions.DeleteSession(request)
    assert caught.value.code() is grpc.StatusCode.ABORTED
    await fails(turn(cluster, session_id), grpc.StatusCode.ABORTED, session_id)
    assert await history(cluster, session_id) == (PROMPT, 0)
    stream.cancel()
    await asyncio.wait_for(worker.script.cancelled.wait(), 5)
    await eventually(lambda: cluster.table.live()[0].num_assigned == 0)
    worker.script.stall_after = None
    ids, *_ = await collect(turn(cluster, session_id))
    assert await history(cluster, session_id) == (PROMPT + ids, 1)
    await cluster.sessions.DeleteSession(request)


async def test_a_deadline_reaches_the_worker(cluster):
    worker = await cluster.add("d1", answer=[A, B], stall_after=1)
    request = generation_service_pb2.GenerateRequest(model="base", content=tokens(1), sampling=sampling())
    for seconds in (0.3, 3, 30):  # until the turn was there when its time was over
        await fails(cluster.generation.Generate(request, timeout=seconds), grpc.StatusCode.DEADLINE_EXCEEDED)
        if worker.script.begun:
            break
    await asyncio.wait_for(worker.script.cancelled.wait(), 5)


LONG = [i % 200 for i in range(1500)]


async def test_a_long_prompt_is_prefilled_elsewhere(cluster):
    decode = await cluster.add("d1", answer=[A, B, C, D], num_local_blocks=3)
    prefill = await cluster.add("p1", role="prefill")
    ids, _, finished = await collect(stateless(cluster, prompt=LONG))
    assert ids == [A, B, C, D] and finished.route.prefill_worker == "p1"
    request, staged = prefill.script.prefilled[0], decode.script.staged[0].blocks
    assert list(request.token_ids) == LONG and request.first_block == 3
    assert (request.turn_id, request.adapter) == (decode.script.begun[0].turn_id, "")
    assert (staged.worker_id, staged.address) == ("p1", prefill.server.address)
    assert (staged.grant.lease_id, staged.grant.first_block) == (request.lease_id, 3)
    assert prefill.script.released_leases == []  # the decode worker's to release
    assert finished.usage.kv_written_tokens == 1000 + 1498 + 4
    assert (finished.usage.transfer_reads, finished.usage.transfer_bytes) == (3, 120)


@pytest.mark.parametrize("error", [OverloadedError("full"), RuntimeError("bug")])
async def test_a_failed_prefill_is_left_to_the_decode_worker(cluster, error):
    decode = await cluster.add("d1", answer=[A, B, C, D])
    prefill = await cluster.add("p1", role="prefill", prefill_error=error)
    ids, _, finished = await collect(stateless(cluster, prompt=LONG))
    assert ids == [A, B, C, D] and not finished.route.HasField("prefill_worker")
    assert not decode.script.staged[0].HasField("blocks")
    await eventually(lambda: prefill.script.released_leases == [prefill.script.prefilled[0].lease_id])


async def test_a_prefill_worker_that_falls_silent(model, new_cluster):
    """The decode worker need not wait until it is forgotten, or for the time limit."""
    async with new_cluster(model, clock=lambda: 0.0, heartbeat_seconds=0.1) as cluster:
        decode = await cluster.add("d1", answer=[A])
        prefill = await cluster.add("p1", role="prefill", prefill_stalls=True)
        reading = asyncio.create_task(collect(stateless(cluster, prompt=LONG, max_tokens=1)))
        await eventually(lambda: prefill.script.prefilled)
        cluster.silence(prefill)
        ids, *_ = await reading
        assert "p1" in [worker.worker_id for worker in cluster.table.known()]
        assert ids == [A] and not decode.script.staged[0].HasField("blocks")
        await asyncio.wait_for(prefill.script.prefill_cancelled.wait(), 5)


async def test_a_prefill_that_takes_too_long_is_left_to_the_decode_worker(model, new_cluster, monkeypatch):
    monkeypatch.setattr("icarus_gateway.main._STAGE_MARGIN", 0.005)
    async with new_cluster(model) as cluster, asyncio.timeout(20):
        decode = await cluster.add("d1", answer=[A])
        prefill = await cluster.add("p1", role="prefill", prefill_stalls=True)
        ids, _, finished = await collect(stateless(cluster, prompt=LONG, max_tokens=1))
        assert ids == [A] and not finished.route.HasField("prefill_worker")
        assert not decode.script.staged[0].HasField("blocks")
        await prefill.script.prefill_cancelled.wait()


async def test_a_worker_that_has_finished_a_turn_is_left_to_return(cluster, monkeypatch):
    monkeypatch.setattr("icarus_gateway.turns.decode_call._LINGER_SECONDS", 20.0)
    worker = await cluster.add("d1", answer=[A], linger_seconds=0.2)
    await collect(stateless(cluster, max_tokens=1))
    await eventually(lambda: not worker.script.num_open)
    assert not worker.script.cancelled.is_set()


async def test_a_worker_that_leaves_when_it_has_finished_a_turn(cluster, monkeypatch):
    """Its channel is closed just as the gateway says that it has nothing more to send: grpc cancels who waits."""

    async def cancelled(self):
        raise asyncio.CancelledError

    monkeypatch.setattr("grpc.aio._call.StreamStreamCall.done_writing", cancelled)
    await cluster.add("d1", answer=[A])
    ids, *_ = await collect(stateless(cluster, max_tokens=1))
    assert ids == [A]


async def test_a_prefill_worker_that_refused_a_turn_is_not_asked_again(cluster):
    await cluster.add("d1", answer=[A], die_after=0)
    second = await cluster.add("d2", answer=[A])
    refusing = await cluster.add("p1", role="prefill", prefill_error=OverloadedError("full"))
    other = await cluster.add("p2", role="prefill")
    await collect(stateless(cluster, prompt=LONG, max_tokens=1))
    assert len(refusing.script.prefilled) == len(other.script.prefilled) == 1
    assert second.script.staged[0].blocks.worker_id == "p2"


async def test_a_dead_prefill_worker_is_left_to_the_decode_worker(cluster):
    decode = await cluster.add("d1", answer=[A])
    prefill = await cluster.add("p1", role="prefill")
    await prefill.server.drain(0)
    await collect(stateless(cluster, prompt=LONG, max_tokens=1))
    assert not decode.script.staged[0].HasField("blocks")
    await collect(stateless(cluster, prompt=LONG, max_tokens=1))
    assert not decode.script.begun[1].await_prefill


async def test_a_prefill_worker_that_leaves_before_it_is_asked(cluster):
    """Its connection is closed when the turn comes to it."""
    decode = await cluster.add("d1", answer=[A], reserve_late=asyncio.Event())
    prefill = await cluster.add("p1", role="prefill")
    reading = asyncio.create_task(collect(stateless(cluster, prompt=LONG, max_tokens=1)))
    await eventually(lambda: decode.script.begun)
    await prefill.leave()
    decode.script.reserve_late.set()
    ids, _, finished = await reading
    assert ids == [A] and not finished.route.HasField("prefill_worker") and not prefill.script.prefilled


async def test_a_prefill_worker_that_leaves_while_it_holds_a_lease(cluster):
    decode = await cluster.add("d1", answer=[A, B], stall_after=0)
    prefill = await cluster.add("p1", role="prefill")
    stream = stateless(cluster, prompt=LONG)
    await eventually(lambda: decode.script.staged)
    await prefill.leave()
    stream.cancel()
    await asyncio.wait_for(decode.script.cancelled.wait(), 5)
    await eventually(lambda: not cluster.table.live()[0].num_assigned)


async def test_cancelling_reaches_the_prefill(cluster):
    """Its answer may have been under way: the lease is given back by the id that was asked for."""
    decode = await cluster.add("d1", answer=[A])
    prefill = await cluster.add("p1", role="prefill", prefill_stalls=True)
    stream = stateless(cluster, prompt=LONG)
    reading = asyncio.create_task(collect(stream))
    await eventually(lambda: prefill.script.prefilled)
    stream.cancel()
    await asyncio.wait_for(prefill.script.prefill_cancelled.wait(), 5)
    await asyncio.wait_for(decode.script.cancelled.wait(), 5)
    with pytest.raises(asyncio.CancelledError):
        await reading
    await eventually(lambda: not any(worker.num_assigned for worker in cluster.table.live()))
    await eventually(lambda: prefill.script.released_leases == [prefill.script.prefilled[0].lease_id])


async def test_a_decode_worker_that_dies_waiting_for_the_prefill(cluster):
    first = await cluster.add("d1", answer=[A], die_reserved=asyncio.Event())
    second = await cluster.add("d2", answer=[A])
    prefill = await cluster.add("p1", role="prefill", prefill_stalls=True)
    reading = asyncio.create_task(collect(stateless(cluster, prompt=LONG, max_tokens=1)))
    await eventually(lambda: prefill.script.prefilled)
    first.script.die_reserved.set()
    await asyncio.wait_for(prefill.script.prefill_cancelled.wait(), 5)
    await eventually(lambda: second.script.begun)
    assert len(first.script.begun) == 1 and not first.script.staged
    await prefill.server.drain(0)  # ends the second attempt's prefill, which stalls too
    ids, _, finished = await reading
    assert ids == [A] and finished.route.decode_worker == "d2"


async def test_a_full_worker_is_passed_over(cluster):
    full = OverloadedError("full", 2.5)
    await cluster.add("d1", refusal=full)
    await cluster.add("d2", answer=[A])
    ids, _, finished = await collect(stateless(cluster, max_tokens=1))
    assert ids == [A] and finished.route.decode_worker == "d2"
    assert len(cluster.table.live()) == 2
    cluster.fakes["d2"].script.refusal = full
    error = error_from_rpc(await fails(stateless(cluster, max_tokens=1), grpc.StatusCode.RESOURCE_EXHAUSTED, "full"))
    assert isinstance(error, OverloadedError) and error.retry_delay_seconds == 2.5


TOO_SMALL = InvalidInputError("14 tokens (prompt and answer) need 4 blocks of 4; the pool of this worker has 3")


async def test_a_pool_that_can_never_hold_the_turn_is_passed_over(cluster):
    small = await cluster.add("d1", refusal=TOO_SMALL)
    await small.register(num_blocks=3)
    large = await cluster.add("d2", answer=[A, B, C, D])
    await large.beat(available_blocks=0, running_requests=100)
    assert (await collect(stateless(cluster)))[2].route.decode_worker == "d2"
    large.script.die_after = 2
    await fails(stateless(cluster), grpc.StatusCode.UNAVAILABLE, "worker d2: gone")
    await fails(stateless(cluster), grpc.StatusCode.UNAVAILABLE, "try again")
    assert not small.script.begun
    await large.leave()
    await fails(stateless(cluster), grpc.StatusCode.INVALID_ARGUMENT, "need 4 blocks of 4")


async def test_what_was_generated_needs_no_room_twice(cluster):
    await cluster.add("d1", answer=[A, B, C], die_after=2)
    exact = await cluster.add("d2", answer=[A, B, C])
    await exact.register(num_blocks=3)
    ids, _, finished = await collect(stateless(cluster, max_tokens=3))
    assert (ids, finished.route.decode_worker) == ([A, B, C], "d2")
    assert exact.script.begun[0].num_output_tokens == 2


async def test_a_session_goes_where_its_blocks_are(cluster):
    """The next turn waits until the index has heard of the last one's blocks; hashes are of the worker's making."""
    await cluster.add("d1", answer=[A, B, C, D])
    holder = await cluster.add("d2", answer=[A, B, C, D])
    await cluster.fakes["d1"].beat(available_blocks=1)
    await holder.beat(available_blocks=2)
    session_id = await new_session(cluster, *PROMPT)
    holder.script.block_sequence = 3
    ids, _, finished = await collect(turn(cluster, session_id))
    assert finished.route.decode_worker == "d2"
    await holder.beat(available_blocks=0)
    reading = asyncio.create_task(collect(turn(cluster, session_id, 1, 2)))
    await asyncio.sleep(0.05)  # the report is yet to come, mostly when the turn waits for it already
    names = block_hashes(root_hash("f", "default"), [*PROMPT, *ids], 4)
    assert (await holder.report(0, names)).next_sequence == 3
    _, _, finished = await reading
    assert finished.route.decode_worker == "d2"
    cluster.fakes["d1"].adapters.append(adapter("math", "shared"))
    await cluster.fakes["d1"].beat()
    await collect(turn(cluster, session_id, model="math"))
    sources = cluster.fakes["d1"].script.begun[0].sources
    assert [(s.worker_id, s.address, s.num_blocks) for s in sources] == [("d2", holder.server.address, 3)]


def adapter(name, mode):
    return registry_service_pb2.Adapter(name=name, digest=name * 2, mode=mode, rank=4)


async def test_waiting_for_the_index_is_bounded(model, new_cluster):
    async with new_cluster(model, report_wait_seconds=0.2) as cluster:
        await cluster.add("d1", answer=[A, B, C, D], block_sequence=10**6)
        session_id = await new_session(cluster, *PROMPT)
        for _ in range(2):
            await collect(turn(cluster, session_id))
        assert (await history(cluster, session_id))[1] == 2


async def test_the_index_is_not_waited_for_once_its_worker_is_another(cluster):
    worker = await cluster.add("d1", answer=[A, B, C, D], block_sequence=10**6)
    session_id = await new_session(cluster, *PROMPT)
    await collect(turn(cluster, session_id))
    worker.instance_id = "d1-2"
    await worker.register()
    async with asyncio.timeout(30):  # half of what it would wait
        await collect(turn(cluster, session_id))


async def test_blocks_are_named_once(cluster, monkeypatch):
    """Over attempts and over turns; a fork goes on with those of its tokens."""
    named = []
    monkeypatch.setattr("icarus.cache.hashing.child_hash", lambda *args: (named.append(args[1]), child_hash(*args))[1])
    await cluster.add("d1", answer=[A, B, C, D], die_after=0)
    second = await cluster.add("d2", answer=[A, B, C, D])
    session_id = await new_session(cluster, *range(100))
    await collect(turn(cluster, session_id))
    await collect(turn(cluster, session_id))
    assert len(second.script.begun) == 2 and [token for block in named for token in block] == [*range(100), A, B, C, D]
    request = session_service_pb2.ForkSessionRequest(session_id=session_id, num_tokens=90)
    fork = (await cluster.sessions.ForkSession(request)).session.session_id
    named.clear()
    await collect(turn(cluster, fork, 1, 2))
    assert named == [(88, 89, 1, 2)]


async def test_private_adapters_have_names_of_their_own(cluster):
    plain = await cluster.add("d1", answer=[A], adapters={"own": "private"})
    holder = await cluster.add("p1", role="prefill", adapters={"own": "private"})
    await cluster.add("p2", role="prefill")
    await holder.report(0, block_hashes(root_hash("f", "default", "ownown"), PROMPT, 4))
    await collect(stateless(cluster, max_tokens=1))
    await collect(stateless(cluster, max_tokens=1, model="own"))
    without, with_source = plain.script.begun
    assert not without.sources and [source.num_blocks for source in with_source.sources] == [2]
    _, _, finished = await collect(stateless(cluster, prompt=LONG, max_tokens=1, model="own"))
    assert finished.route.prefill_worker == "p1"
    assert holder.script.prefilled[0].adapter_mode == "private"


async def test_tenants_share_nothing(cluster):
    worker = await cluster.add("d1", answer=[A])
    other = await cluster.add("d2", role="decode", answer=[A])
    await other.report(0, block_hashes(root_hash("f", "a"), PROMPT, 4))
    for tenant, expected in (("a", "d2"), ("b", "d1")):
        request = generation_service_pb2.GenerateRequest(
            tenant=tenant, model="base", content=tokens(*PROMPT), sampling=sampling(1)
        )
        _, _, finished = await collect(cluster.generation.Generate(request))
        assert finished.route.decode_worker == expected
    assert worker.script.begun[0].tenant == "b" and not worker.script.begun[0].sources
    session_id = await new_session(cluster, 1, tenant="a")
    await fails(turn(cluster, session_id), grpc.StatusCode.NOT_FOUND, session_id)


async def test_sessions_by_messages(cluster, model):
    im_end = model.tokenizer.id_of("<|im_end|>")
    worker = await cluster.add("d1", answer=[A, im_end])
    ask = pb.Content(messages=pb.ChatMessages(messages=[pb.ChatMessage(role="user", content="Hi?")]))
    created = await cluster.sessions.CreateSession(session_service_pb2.CreateSessionRequest(content=ask))
    session_id = created.session.session_id
    request = session_service_pb2.GenerateTurnRequest(session_id=session_id, model="base")
    await collect(cluster.sessions.GenerateTurn(request))
    appended = await cluster.sessions.AppendContent(
        session_service_pb2.AppendContentRequest(session_id=session_id, content=ask)
    )
    delta = "\n<|im_start|>user\nHi?<|im_end|>\n"
    assert appended.num_appended_tokens == len(model.tokenizer.encode(delta))
    await collect(cluster.sessions.GenerateTurn(request))
    shown = model.tokenizer._raw.decode(list(worker.script.begun[1].token_ids), skip_special_tokens=False)
    letter = show(model, [A])
    assert shown == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n"
        f"<|im_start|>assistant\n{letter}<|im_end|>{delta}<|im_start|>assistant\n"
    )


async def test_bad_input_loses_nothing(cluster):
    await cluster.add("d1", answer=[A, B, C, D])
    session_id = await new_session(cluster, *PROMPT)
    bad = grpc.StatusCode.INVALID_ARGUMENT
    await fails(turn(cluster, session_id, max_tokens=0), bad, "max_tokens is 0")
    await fails(turn(cluster, session_id, 9999), bad, "9999")
    await fails(turn(cluster, session_id, max_tokens=4087), bad, "prompt of 10 tokens + max_tokens 4087 = 4097")
    await fails(turn(cluster, await new_session(cluster)), bad, "prompt is empty")
    await fails(turn(cluster, "nosuch"), grpc.StatusCode.NOT_FOUND, "nosuch")
    assert await history(cluster, session_id) == (PROMPT, 0)
    ids, *_ = await collect(turn(cluster, session_id))
    assert ids == [A, B, C, D]
