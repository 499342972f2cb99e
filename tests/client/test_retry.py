"""What the client does when the way to the gateway is bad: a real TCP proxy between it and a scripted gateway."""

import asyncio
import math
import threading
import time
from types import SimpleNamespace

import pytest
from client.proxy import Proxy
from waiting import wait_until

from icarus.client import AsyncClient, Client, RetryPolicy
from icarus.client.messages import Sampling, build_turn, rest_of
from icarus.client.retry import DEFAULT_RETRY, Attempts
from icarus.config import GatewaySection
from icarus.errors import FailedPreconditionError, InvalidInputError, OverloadedError, UnavailableError
from icarus.rpc.channel import open_channel
from icarus.types import FinishReason
from icarus.v1 import generation_service_pb2 as generation_pb2
from icarus.v1 import model_service_pb2 as model_pb2
from icarus.v1 import model_service_pb2_grpc as model_grpc
from icarus.v1 import session_service_pb2 as session_pb2

QUICK = RetryPolicy(retries=5, first_delay_seconds=0.05, max_delay_seconds=0.2)
NEVER = RetryPolicy(retries=0)
IMPATIENT = RetryPolicy(retries=3, first_delay_seconds=0.01, resume_seconds=0.0)
HELPLESS = RetryPolicy(first_delay_seconds=60, max_delay_seconds=60, resume_seconds=0.0)
"""With a timeout of 30 s there is no time for its first retry."""
LOST = UnavailableError("no worker is there")
TOKENS = tuple(range(20, 60))
TEXT = "".join(f"<{token_id}>" for token_id in TOKENS)


@pytest.fixture
def proxy(gateway):
    with Proxy(gateway.address) as proxy:
        yield proxy


def slow_session(client):
    """A session whose turns bring TOKENS one by one when asked "slow"."""
    return client.create_session(token_ids=TOKENS)


def resumes(gateway):
    asked = [request for request in gateway.requests if isinstance(request, session_pb2.GenerateTurnRequest)]
    return [request.resume_from for request in asked]


def test_a_stream_that_is_cut_goes_on_where_it_broke(gateway, proxy):
    with Client(proxy.address, retry=QUICK, timeout=30) as client:
        stream = slow_session(client).generate("alpha", "slow", turn_id="t1")
        arrived = [next(stream), next(stream)]
        proxy.cut()
        arrived += list(stream)
        assert tuple(token_id for delta in arrived for token_id in delta.token_ids) == TOKENS
        result = stream.result()
    assert (result.token_ids, result.text, result.finish_reason) == (TOKENS, TEXT, FinishReason.LENGTH)
    assert proxy.connections == 2 and len(resumes(gateway)) >= 2
    assert resumes(gateway)[0] == 0 and resumes(gateway)[-1] >= 2
    last = gateway.last(session_pb2.GenerateTurnRequest)
    assert (last.turn_id, last.resumable) == ("t1", True)
    assert gateway.cancelled == []


async def test_the_same_for_asyncio(gateway, proxy):
    async with AsyncClient(proxy.address, retry=QUICK, timeout=30) as client:
        session = await client.create_session(token_ids=TOKENS)
        stream = session.generate("alpha", "slow")
        for _ in range(3):
            await anext(stream)
            await asyncio.to_thread(proxy.cut)
        result = await stream.result()
    assert (result.token_ids, result.text) == (TOKENS, TEXT)
    assert proxy.connections == 4 and gateway.cancelled == []


def test_text_that_came_after_the_last_token_is_not_taken_twice(gateway, proxy):
    gateway.pause_seconds = 0.5
    with Client(proxy.address, retry=QUICK, timeout=30) as client:
        stream = client.create_session(token_ids=[5, 6]).generate("alpha", "held back")
        while not stream.text.endswith("."):
            next(stream)
        proxy.cut()
        assert stream.result().text == "<5><6>."
    assert resumes(gateway)[-1] == 2


def test_a_turn_that_was_itself_resumed_goes_on_from_there():
    request = build_turn("default", "alpha", None, "t1", 2, Sampling(), True, 0)
    assert rest_of(request, 3).resume_from == 5 and request.resume_from == 2


def test_what_comes_resets_the_count(gateway, proxy):
    with Client(proxy.address, retry=RetryPolicy(retries=2, first_delay_seconds=0.3), timeout=30) as client:
        stream = slow_session(client).generate("alpha", "slow")
        for _ in range(5):
            next(stream)
            proxy.cut()
        assert stream.result().token_ids == TOKENS


def test_without_retries_a_broken_stream_is_an_error_and_the_turn_ends(gateway, proxy):
    with Client(proxy.address, retry=NEVER, timeout=30) as client:
        stream = slow_session(client).generate("alpha", "slow")
        next(stream)
        proxy.cut()
        with pytest.raises(UnavailableError):
            list(stream)
    assert resumes(gateway) == [0] and not gateway.last(session_pb2.GenerateTurnRequest).resumable
    wait_until(lambda: gateway.cancelled == [stream.turn_id])


def test_retries_have_an_end(gateway, proxy):
    with Client(proxy.address, retry=IMPATIENT, timeout=30) as client:
        stream = slow_session(client).generate("alpha", "slow", turn_id="t1")
        next(stream)
        proxy.refuse()
        with pytest.raises(UnavailableError, match=r"same turn_id before .*or look at the session's history"):
            stream.result()
        with pytest.raises(UnavailableError, match="turn t1 was sent, and may have finished or still finish"):
            stream.result()
        assert stream.token_ids == TOKENS[: len(stream.token_ids)] and stream.token_ids
    assert gateway.cancelled == []


def test_a_turn_that_the_gateway_forgot_is_not_begun_anew(gateway, proxy):
    with Client(proxy.address, retry=QUICK, timeout=30) as client:
        stream = slow_session(client).generate("alpha", "slow", turn_id="t1")
        next(stream)
        gateway.forget("t1")
        proxy.cut()
        with pytest.raises(UnavailableError, match="'t1' is not known") as caught:
            stream.result()
        assert "same turn_id" not in str(caught.value)
        assert stream.token_ids == TOKENS[: len(stream.token_ids)]


def test_a_turn_that_cannot_have_run_is_not_asked_for_again(gateway):
    with Client("127.0.0.1:1", retry=IMPATIENT) as client, pytest.raises(UnavailableError) as never_sent:
        client.generate("alpha", "hi").result()
    gateway.failures += [LOST] * 4
    with Client(gateway.address, retry=IMPATIENT) as client, pytest.raises(UnavailableError) as refused:
        client.generate("alpha", "hi").result()
    assert "turn_id" not in f"{never_sent.value} {refused.value}" and gateway.failures == []


def answers(client: Client) -> bool:
    """Whether the connection that was cut has been made anew: what is sent on the old one fails."""
    try:
        return bool(client.models().names)
    except UnavailableError:
        return False


def test_leaving_with_ends_a_turn_that_its_stream_gave_up(gateway, proxy):
    with Client(proxy.address, retry=HELPLESS, timeout=30) as client:
        with client.generate("alpha", "endless") as stream:
            next(stream)
            proxy.cut()
            with pytest.raises(UnavailableError, match=r"the same turn_id before .*finish_reason"):
                stream.result()
            wait_until(lambda: answers(client))
        assert gateway.cancelled == [stream.turn_id] and stream.finish_reason is None
        stream.cancel()
    methods = [method for method, _ in gateway.calls if method != "ListModels"]
    assert methods == ["Generate", "CancelTurn"]


async def answers_for_asyncio(client: AsyncClient) -> bool:
    try:
        return bool((await client.models()).names)
    except UnavailableError:
        return False


async def test_leaving_with_ends_a_turn_that_its_stream_gave_up_for_asyncio(gateway, proxy):
    async with AsyncClient(proxy.address, retry=HELPLESS, timeout=30) as client:
        async with client.generate("alpha", "endless") as stream:
            await anext(stream)
            await asyncio.to_thread(proxy.cut)
            with pytest.raises(UnavailableError, match=r"the same turn_id before .*finish_reason"):
                await stream.result()
            while not await answers_for_asyncio(client):
                await asyncio.sleep(0.01)
        assert gateway.cancelled == [stream.turn_id] and stream.finish_reason is None


def test_leaving_with_does_not_cancel_a_turn_that_was_resumed_to_its_end(gateway, proxy):
    with Client(proxy.address, retry=QUICK, timeout=30) as client:
        with slow_session(client).generate("alpha", "slow") as stream:
            next(stream)
            proxy.cut()
            stream.result()
        assert "CancelTurn" not in [method for method, _ in gateway.calls]


def test_cancellation_wins_over_a_wait(gateway, proxy):
    with Client(proxy.address, retry=HELPLESS) as client:
        stream = slow_session(client).generate("alpha", "slow")
        next(stream)
        proxy.cut()
        started = time.monotonic()
        threading.Timer(0.5, stream.cancel).start()
        with pytest.raises(FailedPreconditionError):
            stream.result()
        assert stream.finish_reason is FinishReason.CANCELLED
        assert time.monotonic() - started < 20
        wait_until(lambda: gateway.cancelled == [stream.turn_id])


async def test_cancelling_the_task_wins_over_a_wait(gateway, proxy):
    async with AsyncClient(proxy.address, retry=HELPLESS) as client:
        stream = (await client.create_session(token_ids=TOKENS)).generate("alpha", "slow")
        await anext(stream)
        await asyncio.to_thread(proxy.cut)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(stream.result(), 0.5)
        assert stream.finish_reason is FinishReason.CANCELLED
    await asyncio.to_thread(wait_until, lambda: gateway.cancelled == [stream.turn_id])


def test_a_client_that_closes_at_once_has_cancelled(gateway):
    with Client(gateway.address) as client:
        stream = client.generate("alpha", "endless")
        next(stream)
        stream.cancel()
    wait_until(lambda: gateway.cancelled == [stream.turn_id])


def test_the_deadline_counts_for_all_attempts(gateway, proxy):
    started = time.monotonic()
    with Client(proxy.address, retry=RetryPolicy(retries=100, max_delay_seconds=0.3), timeout=1.5) as client:
        session = client.session("s0")
        proxy.refuse()
        with pytest.raises(UnavailableError):
            session.get()
        assert time.monotonic() - started < 10
    with pytest.raises(UnavailableError):
        Attempts(QUICK, timeout=0.01).delay_after(LOST, repeatable=True)


def test_a_gap_that_the_gateways_grace_outlasts_is_survived(gateway, proxy):
    """The delays of its retries, were it not under way, would be longer than the grace."""
    gateway.grace_seconds, gateway.pause_seconds = 6.0, 0.5
    slowly = RetryPolicy(first_delay_seconds=20.0, max_delay_seconds=20.0)
    with Client(proxy.address, retry=slowly, timeout=60) as client:
        stream = slow_session(client).generate("alpha", "slow", turn_id="t1")
        next(stream)
        proxy.refuse()
        threading.Timer(0.5, proxy.reopen).start()
        assert [next(stream).token_ids, next(stream).token_ids] == [(21,), (22,)]


def test_a_turn_whose_gateway_was_restarted_waits_for_its_workers(gateway, proxy):
    with Client(proxy.address, retry=RetryPolicy(retries=2, first_delay_seconds=0.01), timeout=30) as client:
        gateway.pause_seconds = 60.0  # nothing is told before the restart
        stream = client.generate("alpha", "late", turn_id="t1")
        wait_until(lambda: gateway.turn_ids)
        proxy.refuse()
        gateway.pause_seconds = 0.05
        gateway.forget("t1")
        gateway.failures += [LOST] * 6
        proxy.reopen()
        assert stream.result().token_ids == (1, 2, 3) and gateway.failures == []


def test_a_turn_is_not_taken_for_ended_where_there_is_no_room_to_ask(gateway, proxy):
    with Client(proxy.address, retry=QUICK, timeout=30) as client:
        with slow_session(client).generate("alpha", "slow") as stream:
            next(stream)
            gateway.failures.append(OverloadedError("as many calls are under way as allowed", 2.5))
            proxy.cut()
            with pytest.raises(OverloadedError, match="may have finished or still finish") as caught:
                stream.result()
            assert caught.value.retry_delay_seconds == 2.5
        assert gateway.cancelled == [stream.turn_id] and stream.finish_reason is None


def test_a_turn_that_was_resumed_and_then_failed_has_ended(gateway, proxy):
    gateway.pause_seconds = 0.5
    with Client(proxy.address, retry=QUICK, timeout=30) as client:
        with client.create_session(token_ids=[5, 6, 7]).generate("alpha", "slow trouble") as stream:
            next(stream)
            proxy.cut()
            with pytest.raises(OverloadedError) as caught:
                stream.result()
        assert "may have finished" not in str(caught.value)
    assert "CancelTurn" not in [method for method, _ in gateway.calls]


def test_a_turn_is_sent_again_until_a_worker_is_there(gateway):
    gateway.failures += [LOST, LOST]
    with Client(gateway.address, retry=QUICK) as client:
        assert client.generate("alpha", "hi", turn_id="t1").result().token_ids == (1, 2, 3)
    asked = [request.turn_id for request in gateway.requests if isinstance(request, generation_pb2.GenerateRequest)]
    assert asked == ["t1"] * 3


def test_reading_calls_are_repeated(gateway):
    with Client(gateway.address, retry=QUICK) as client:
        session = client.create_session(token_ids=[1])
        gateway.failures += [LOST, LOST]
        assert session.token_ids() == (1,)
        gateway.failures += [LOST]
        assert client.models().context_length == 2048


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.create_session(token_ids=[1]),
        lambda client: client.session("s0").append(token_ids=[1]),
        lambda client: client.load_adapter("alpha", "/a"),
    ],
)
def test_calls_that_would_act_twice_are_made_once(gateway, call):
    with Client(gateway.address, retry=QUICK) as client:
        gateway.failures += [LOST, LOST]
        with pytest.raises(UnavailableError):
            call(client)
        assert len(gateway.failures) == 1


@pytest.mark.parametrize("error", [OverloadedError("full", 0.3), InvalidInputError("never")])
def test_other_errors_are_not_retried(gateway, error):
    with Client(gateway.address, retry=QUICK) as client:
        gateway.failures += [error, error]
        with pytest.raises(type(error)):
            client.models()
        with pytest.raises(type(error)):
            client.generate("alpha", "hi").result()


def test_who_asks_waits_as_long_as_an_overloaded_gateway_says(gateway):
    policy = RetryPolicy(retries=3, first_delay_seconds=0.01, wait_when_overloaded=True)
    with Client(gateway.address, retry=policy) as client:
        gateway.failures += [OverloadedError("full", 0.6)]
        started = time.monotonic()
        assert client.generate("alpha", "hi").result().token_ids == (1, 2, 3)
        assert time.monotonic() - started >= 0.6
        gateway.failures += [OverloadedError("full", 0.1)]
        assert client.create_session(token_ids=[1]).token_ids() == (1,)


def test_a_long_way_is_no_reason_to_give_up(gateway):
    with Proxy(gateway.address, delay_seconds=0.3) as proxy, Client(proxy.address, retry=NEVER) as client:
        assert client.models(timeout=30).context_length == 2048
        assert proxy.connections == 1


async def test_a_long_way_between_services(gateway):
    with Proxy(gateway.address, delay_seconds=0.3) as proxy:
        async with open_channel(proxy.address) as channel:
            models = await model_grpc.ModelServiceStub(channel).ListModels(model_pb2.ListModelsRequest(), timeout=30)
            assert models.context_length == 2048


async def test_unary_calls_for_asyncio(gateway):
    async with AsyncClient(gateway.address, retry=QUICK) as client:
        gateway.failures += [LOST, LOST]
        assert (await client.models()).context_length == 2048
        gateway.failures += [LOST]
        with pytest.raises(UnavailableError):
            await client.create_session(token_ids=[1])


@pytest.fixture
def may_ping_often(monkeypatch):
    """The script has more patience than a gateway."""
    monkeypatch.setattr("icarus.client.connection.MIN_KEEPALIVE_SECONDS", 0)


def test_pings_keep_a_connection_that_is_idle(gateway, may_ping_often):
    """During a call and, at the same time on another connection, between calls."""
    gateway.pause_seconds = 7.5
    with (
        Proxy(gateway.address, idle_seconds=6.0) as during,
        Proxy(gateway.address, idle_seconds=6.0) as between,
        Client(during.address, retry=NEVER, keepalive_seconds=3.0) as listener,
        Client(between.address, retry=NEVER, keepalive_seconds=3.0) as idler,
    ):
        idler.models()
        session = listener.create_session(token_ids=[1, 2])
        assert session.generate("alpha", "slow", timeout=60).result().token_ids == (1, 2)
        idler.models()
        assert (during.connections, between.connections) == (1, 1)


def test_without_pings_the_proxy_drops_it_and_the_stream_is_resumed(gateway):
    gateway.pause_seconds = 2.0
    with (
        Proxy(gateway.address, idle_seconds=1.0) as proxy,
        Client(proxy.address, retry=QUICK, keepalive_seconds=60) as client,
    ):
        assert client.generate("alpha", "slow", timeout=60).result().token_ids == (1, 2, 3)
        assert proxy.connections > 1


def test_a_connection_that_went_silent_is_noticed(gateway, proxy, may_ping_often):
    with Client(proxy.address, retry=QUICK, keepalive_seconds=1.0) as client:
        stream = slow_session(client).generate("alpha", "slow", timeout=60)
        next(stream)
        proxy.silence()
        assert stream.result().token_ids == TOKENS
        assert proxy.connections > 1


def test_delays_grow_to_the_limit_and_begin_again():
    attempts = Attempts(RetryPolicy(retries=6, first_delay_seconds=1.0, max_delay_seconds=4.0), timeout=None)
    delays = [attempts.delay_after(LOST, repeatable=True) for _ in range(6)]
    for delay, most in zip(delays, (1, 2, 4, 4, 4, 4), strict=True):
        assert most / 2 <= delay <= most
    with pytest.raises(UnavailableError):
        attempts.delay_after(LOST, repeatable=True)
    attempts.succeeded()
    assert attempts.delay_after(LOST, repeatable=True) <= 1
    with pytest.raises(UnavailableError):
        attempts.delay_after(LOST, repeatable=False)


@pytest.mark.parametrize("luck", [0.0, 1.0])
def test_a_turn_under_way_is_asked_for_beyond_the_gateways_grace(monkeypatch, luck):
    def seconds_until_it_gives_up(broke: bool) -> float:
        attempts, spent = Attempts(DEFAULT_RETRY, timeout=None), 0.0
        monkeypatch.setattr("icarus.client.retry.time", SimpleNamespace(monotonic=lambda: spent))
        if broke:
            attempts.broke()
        with pytest.raises(UnavailableError):
            while True:
                delay = attempts.delay_after(LOST, repeatable=True)
                assert delay <= 0.5 or not broke
                spent += delay
        return spent

    fixed = SimpleNamespace(uniform=lambda low, high: low + luck * (high - low))
    monkeypatch.setattr("icarus.client.retry.random", fixed)
    assert GatewaySection().resume_grace_seconds * 1.4 <= seconds_until_it_gives_up(broke=True) <= 16
    assert 1.5 <= seconds_until_it_gives_up(broke=False) <= 3.2


def test_each_break_begins_the_time_anew_but_not_for_ever(monkeypatch):
    """Not where a proxy breaks whatever it is sent."""
    now = 0.0
    monkeypatch.setattr("icarus.client.retry.time", SimpleNamespace(monotonic=lambda: now))
    attempts = Attempts(DEFAULT_RETRY, timeout=None)
    for _ in range(DEFAULT_RETRY.retries):
        now += 60
        attempts.broke()
        now += 14
        attempts.delay_after(LOST, repeatable=True)
    now += 60
    attempts.broke()
    with pytest.raises(UnavailableError):
        attempts.delay_after(LOST, repeatable=True)


def test_delays_have_a_limit_however_often_it_failed():
    attempts = Attempts(RetryPolicy(retries=10**6, first_delay_seconds=0.1, max_delay_seconds=5.0), timeout=None)
    delays = [attempts.delay_after(LOST, repeatable=True) for _ in range(2000)]
    assert all(2.5 <= delay <= 5 for delay in delays[10:])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("retries", value) for value in (-1, None, "5", 2.5, True)),
        *(("first_delay_seconds", value) for value in (-1, None, "1", math.nan, math.inf)),
        *(("max_delay_seconds", value) for value in (-0.1, math.nan, math.inf)),
        *(("resume_seconds", value) for value in (-1, None, math.nan, math.inf)),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(name, value):
    with pytest.raises(InvalidInputError, match=f"{name} is {value!r}"):
        RetryPolicy(**{name: value})


def test_a_policy_takes_its_first_four_by_position():
    assert RetryPolicy(3, 0.5, 2.0, True) == RetryPolicy(
        retries=3, first_delay_seconds=0.5, max_delay_seconds=2.0, wait_when_overloaded=True
    )


def test_no_delay_is_longer_than_clocks_can_wait():
    policy = RetryPolicy(first_delay_seconds=1e300, max_delay_seconds=10**400)
    assert Attempts(policy, timeout=None).delay_after(LOST, repeatable=True) <= threading.TIMEOUT_MAX
