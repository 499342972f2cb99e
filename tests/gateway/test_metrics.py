"""What a turn counts, however it goes: scripted workers, and the registry that a scrape would read."""

import asyncio
from functools import partial

import grpc
import pytest
from gateway.test_turns import A, B, C, D, collect, fails, sampling, stateless, tokens
from icarus_gateway.metrics import Outcome
from waiting import eventually

from icarus.errors import OverloadedError
from icarus.rpc.model_labels import MAX_MODELS, OTHER, ModelLabels
from icarus.v1 import generation_service_pb2
from icarus.v1.cluster_service_pb2 import GetClusterRequest


async def read(cluster, name: str, **labels: str) -> float:
    """The sum over every series with these labels, as a scrape on another thread sees them."""
    families = await asyncio.to_thread(lambda: list(cluster.metrics.collect()))
    samples = (sample for family in families for sample in family.samples)
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


@pytest.fixture
def value(cluster):
    return partial(read, cluster)


async def test_a_turn_that_another_worker_takes_over_counts_once(cluster, value):
    await cluster.add("d1", answer=[A, B, C, D], die_after=2)
    await cluster.add("d2", answer=[A, B, C, D])
    ids, _, finished = await collect(stateless(cluster))
    assert ids == [A, B, C, D] and finished.route.decode_worker == "d2"
    assert await value("icarus_turns_total", model="base", outcome="length") == await value("icarus_turns_total") == 1
    assert await value("icarus_turns_placed_total", plan="decode_only") == 2
    assert await value("icarus_redispatched_turns_total", reason="lost") == 1
    assert await value("icarus_redispatched_turns_total") == 1
    usage = finished.usage
    assert await value("icarus_prompt_tokens_total") == usage.prompt_tokens == 10
    assert await value("icarus_prompt_tokens_total", source="computed") == usage.computed_tokens == 8
    assert await value("icarus_encoder_tokens_avoided_total") == usage.cached_tokens == 2
    assert await value("icarus_completion_tokens_total") == usage.completion_tokens == 4
    assert await value("icarus_inter_token_latency_seconds_count") == 3
    assert await value("icarus_time_to_first_token_seconds_count") == 1
    assert await value("icarus_workers", role="decode", state="left_out") == 1


async def test_a_worker_that_died_is_forgotten_while_others_go_on(cluster, value):
    await cluster.add("d1")
    other = await cluster.add("d2")
    cluster.table.live()[0].last_seen -= 10 * 60
    assert await value("icarus_workers", state="left_out") == 1
    await other.beat()
    assert await value("icarus_workers") == await value("icarus_workers", state="ready") == 1


async def test_a_worker_that_drains_is_not_left_out(cluster, value):
    worker = await cluster.add("d1")
    await worker.beat(draining=True)
    assert await value("icarus_workers") == await value("icarus_workers", role="decode", state="draining") == 1
    (ends,) = (await cluster.cluster.GetCluster(GetClusterRequest())).left_out
    assert ends.draining
    cluster.silence(worker)
    assert await value("icarus_workers") == await value("icarus_workers", state="left_out") == 1
    (gone,) = (await cluster.cluster.GetCluster(GetClusterRequest())).left_out
    assert not gone.draining


async def test_writers_that_are_not_loaded_are_others(cluster, value):
    worker = await cluster.add("d1", answer=[A, B, C, D])
    await collect(stateless(cluster))
    assert await value("icarus_cross_adapter_tokens_total", written_under="other", read_under="base") == 1
    await cluster.add("d2", adapters={"math": "shared"}, answer=[A, B, C, D])
    worker.script.refusal = OverloadedError("full")
    await collect(stateless(cluster))
    assert await value("icarus_cross_adapter_tokens_total", written_under="math", read_under="base") == 1
    assert await value("icarus_cross_adapter_tokens_total") == 2


async def test_a_turn_that_is_asked_for_again_counts_once(cluster, value):
    await cluster.add("d1", answer=[A, B, C, D])
    request = generation_service_pb2.GenerateRequest(
        model="base", turn_id="t", content=tokens(1, 2, 3), sampling=sampling()
    )
    for _ in range(2):
        ids, _, _ = await collect(cluster.generation.Generate(request))
        assert ids == [A, B, C, D]
    assert await value("icarus_turns_total") == 1
    assert await value("icarus_completion_tokens_total") == 4
    assert await value("icarus_rpcs_total", method="icarus.v1.GenerationService/Generate", status="OK") == 2


async def test_how_turns_end_badly(cluster, value):
    async def outcome(expected: Outcome, model: str = "base") -> None:
        assert await value("icarus_turns_total", outcome=expected, model=model) == 1
        assert await value("icarus_turns_running") == 0

    worker = await cluster.add("d1", answer=[A, B, C, D])
    await fails(stateless(cluster, model="nobody"), grpc.StatusCode.NOT_FOUND)
    await outcome(Outcome.REFUSED, OTHER)
    worker.script.refusal = OverloadedError("full")
    await fails(stateless(cluster), grpc.StatusCode.RESOURCE_EXHAUSTED)
    await outcome(Outcome.OVERLOADED)
    assert await value("icarus_prompt_tokens_total") == 0
    worker.script.refusal, worker.script.die_after = None, 1
    await fails(stateless(cluster), grpc.StatusCode.UNAVAILABLE)
    await outcome(Outcome.FAILED)
    assert await value("icarus_prompt_tokens_total") == 10 and await value("icarus_completion_tokens_total") == 1


async def test_a_cancelled_turn_counts_what_it_used(cluster, value):
    worker = await cluster.add("d1", answer=[A, B, C, D], stall_after=2)
    call = stateless(cluster)
    await call.read()
    await eventually(lambda: worker.script.begun)
    call.cancel()
    await asyncio.wait_for(worker.script.cancelled.wait(), 5)
    async with asyncio.timeout(5):
        while not await value("icarus_turns_total", outcome="cancelled"):
            await asyncio.sleep(0.01)
    assert await value("icarus_prompt_tokens_total") == 10
    assert 1 <= await value("icarus_completion_tokens_total", outcome="cancelled") <= 2
    assert await value("icarus_completion_tokens_total", outcome="length") == 0
    assert await value("icarus_turn_seconds_count") == 0
    assert await value("icarus_rpcs_total", method="icarus.v1.GenerationService/Generate", status="CANCELLED") == 1


async def test_a_gateway_that_holds_as_many_calls_as_it_may(model, new_cluster):
    """Its refusals are counted, and a turn can be ended nevertheless."""
    method = "icarus.v1.GenerationService/Generate"
    async with new_cluster(model, max_calls=1, worker_address="127.0.0.1:0") as cluster:
        worker = await cluster.add("d1", answer=[A, B, C, D], stall_after=1)
        request = generation_service_pb2.GenerateRequest(
            model="base", turn_id="t", content=tokens(1, 2, 3), sampling=sampling()
        )
        held = cluster.generation.Generate(request)
        await held.read()
        await fails(stateless(cluster), grpc.StatusCode.RESOURCE_EXHAUSTED, "as many calls are under way")
        await fails(stateless(cluster), grpc.StatusCode.RESOURCE_EXHAUSTED, "[gateway] max_calls allows (1)")
        assert await read(cluster, "icarus_rpcs_total", method=method, status="RESOURCE_EXHAUSTED") == 2
        await cluster.generation.CancelTurn(generation_service_pb2.CancelTurnRequest(turn_id="t"))
        await asyncio.wait_for(worker.script.cancelled.wait(), 5)
        assert await held.code() is grpc.StatusCode.ABORTED
        worker.script.stall_after = None
        await collect(stateless(cluster))


def test_model_labels_are_few():
    loaded = {f"m{i}" for i in range(2 * MAX_MODELS)}
    labels = ModelLabels("base", lambda: loaded)
    assert labels.label("") == labels.label("base") == "base"
    assert labels.label("nobody") == OTHER
    given = {labels.label(name) for name in sorted(loaded)}
    assert len(given - {OTHER}) == MAX_MODELS - 1 and OTHER in given
    kept = min(given - {OTHER})
    loaded.clear()
    assert labels.label(kept) == kept, "a turn may still end under a name that was unloaded"
