"""The client for threads against a scripted gateway."""

import threading

import pytest
from client.proxy import Proxy
from waiting import wait_until

from icarus.client import Client, Delta, LeftOutWorker
from icarus.errors import (
    ConflictError,
    DeadlineError,
    FailedPreconditionError,
    InvalidInputError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)
from icarus.types import AdapterMode, FinishReason, Role
from icarus.v1 import generation_service_pb2 as generation_pb2
from icarus.v1 import model_service_pb2 as model_pb2
from icarus.v1 import session_service_pb2 as session_pb2


@pytest.fixture
def client(gateway):
    with Client(gateway.address, tenant="acme", timeout=10) as client:
        yield client


def test_stream_gives_deltas_then_the_result(client):
    stream = client.generate("alpha", token_ids=[5, 6], max_tokens=2, seed=9)
    assert list(stream) == [Delta((5,), "<5>"), Delta((6,), "<6>")]
    assert (stream.text, stream.token_ids, stream.finish_reason) == ("<5><6>", (5, 6), FinishReason.LENGTH)
    result = stream.result()
    assert (result.usage.prompt_tokens, result.usage.cached_tokens, result.usage.kv_written_tokens) == (2, 2, 5)
    assert (result.route.decode_worker, result.route.prefill_worker, result.seed) == ("decode-0", None, 9)
    assert list(stream) == []


def test_a_request_says_everything(client, gateway):
    sampling = {"max_tokens": 3, "temperature": 0.5, "top_p": 0.25, "top_k": 4, "seed": 2**63, "ignore_eos": True}
    stream = client.generate("alpha", "hi", turn_id="t1", min_delta_tokens=3, stop=["a", "b"], **sampling)
    stream.result()
    request = gateway.last(generation_pb2.GenerateRequest)
    assert (request.tenant, request.turn_id, request.model, request.content.text) == ("acme", "t1", "alpha", "hi")
    assert {name: getattr(request.sampling, name) for name in sampling} == sampling
    assert (request.min_delta_tokens, list(request.sampling.stop)) == (3, ["a", "b"])


def test_what_is_left_out_is_absent(client, gateway):
    first, second = (client.generate("alpha", "hi", stop="x") for _ in range(2))
    assert first.turn_id and first.turn_id != second.turn_id
    first.result()
    request = gateway.last(generation_pb2.GenerateRequest)
    assert not request.sampling.HasField("max_tokens") and not request.sampling.HasField("seed")
    assert list(request.sampling.stop) == ["x"]


def test_messages_are_sent_as_messages(client, gateway):
    client.generate("alpha", messages=[{"role": "user", "content": "hello"}]).result()
    (message,) = gateway.last(generation_pb2.GenerateRequest).content.messages.messages
    assert (message.role, message.content) == ("user", "hello")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"text": "a", "token_ids": [1]}, "one of"),
        ({"token_ids": [-1]}, "token_ids"),
        ({"token_ids": ["x"]}, "token_ids"),
        ({"messages": [{"role": "user"}]}, "content"),
        ({"messages": [{"role": "user", "content": 3}]}, "content"),
        ({"text": "a", "max_token": 3}, "max_tokens"),
        ({"text": "a", "max_tokens": "many"}, "max_tokens"),
        ({"text": "a", "seed": -1}, "seed"),
        ({"text": "a", "stop": [3]}, "stop"),
    ],
)
def test_what_cannot_be_sent_is_refused_by_name(client, gateway, arguments, word):
    with pytest.raises(InvalidInputError, match=word):
        client.generate("alpha", **arguments)
    assert gateway.requests == []


LONE = "a\ud83d"
NOT_UNICODE = [
    ("text", lambda client: client.generate("alpha", LONE)),
    ("a message's role", lambda client: client.generate("alpha", messages=[{"role": LONE, "content": "hi"}])),
    ("a message's content", lambda client: client.create_session(messages=[{"role": "user", "content": LONE}])),
    ("model", lambda client: client.generate(LONE, "hi")),
    ("turn_id", lambda client: client.session("s0").generate("alpha", "hi", turn_id=LONE)),
    ("stop", lambda client: client.generate("alpha", "hi", stop=["b", LONE])),
    ("address", lambda client: type(client)(LONE)),
    ("tenant", lambda client: type(client)(client.address, tenant=LONE)),
    ("session_id", lambda client: client.session(LONE).get()),
    ("name", lambda client: client.load_adapter(LONE, "/alpha")),
    ("path", lambda client: client.load_adapter("alpha", LONE)),
    ("workers", lambda client: client.load_adapter("alpha", "/alpha", workers=["decode-0", LONE])),
    ("name", lambda client: client.pin_adapter(LONE)),
    ("name", lambda client: client.unload_adapter(LONE)),
]
"""What is named, and a call with half of a surrogate pair in it, as JSON's "\\ud83d" gives it."""


@pytest.mark.parametrize(("name", "call"), NOT_UNICODE)
def test_text_that_is_not_unicode_is_refused_by_name(client, gateway, name, call):
    with pytest.raises(InvalidInputError, match=rf"^{name} .*\\ud83d"):
        call(client)
    assert gateway.requests == []


@pytest.mark.parametrize(
    ("prompt", "kind"), [("invalid", InvalidInputError), ("overloaded", OverloadedError), ("conflict", ConflictError)]
)
def test_a_status_becomes_its_error(client, prompt, kind):
    stream = client.generate("alpha", prompt)
    with pytest.raises(kind) as caught:
        list(stream)
    if isinstance(caught.value, OverloadedError):
        assert caught.value.retry_delay_seconds == 2.5
    with pytest.raises(kind):
        stream.result()
    assert stream.finish_reason is None
    assert client.generate("alpha", "fine").result().token_ids == (1, 2, 3)


def test_trouble_after_tokens_keeps_them(client):
    stream = client.generate("alpha", "late trouble")
    with pytest.raises(OverloadedError, match="no room any more"):
        stream.result()
    assert stream.token_ids == (1, 2, 3)


def test_unknown_model_is_named(client):
    with pytest.raises(NotFoundError, match="missing"):
        client.generate("missing", "hi").result()


def test_leaving_early_cancels_the_turn(client, gateway):
    with client.generate("alpha", "endless", turn_id="t7") as stream:
        assert next(stream).token_ids == (1,)
    wait_until(lambda: gateway.cancelled == ["t7"])
    assert list(stream) == []
    assert (stream.finish_reason, stream.token_ids, stream.usage) == (FinishReason.CANCELLED, (1,), None)
    with pytest.raises(FailedPreconditionError, match="t7 was cancelled"):
        stream.result()


def test_cancel_from_another_thread_ends_the_iteration(client, gateway):
    stream = client.generate("alpha", "endless")

    def cancel_after_three() -> None:
        wait_until(lambda: len(stream.token_ids) == 3)
        stream.cancel()

    threading.Thread(target=cancel_after_three).start()
    assert len(list(stream)) == 3
    wait_until(lambda: gateway.cancelled == [stream.turn_id])


def test_cancel_after_the_end_changes_nothing(client):
    stream = client.generate("alpha", "hi")
    stream.result()
    stream.cancel()
    assert stream.finish_reason is FinishReason.LENGTH


def test_timeout_is_a_deadline_error(client, gateway):
    for seconds in (0.3, 3, 30):  # until the turn was there when its time was over
        stream = client.generate("alpha", "endless", turn_id=f"t{seconds}", timeout=seconds)
        with pytest.raises(DeadlineError, match=f"^turn t{seconds} at {gateway.address} took longer than {seconds} s$"):
            stream.result()
        if stream.token_ids:
            break
    wait_until(lambda: stream.turn_id in gateway.cancelled)


def test_a_call_that_takes_too_long_says_whose(gateway):
    words = "^the call to 127.0.0.1:[0-9]+ took longer than 0.2 s$"
    with (
        Proxy(gateway.address, delay_seconds=1.0) as proxy,
        Client(proxy.address) as client,
        pytest.raises(DeadlineError, match=words),
    ):
        client.models(timeout=0.2)


def test_a_timeout_of_nothing_and_one_without_end(client, gateway):
    with pytest.raises(DeadlineError, match=f"^turn t9 at {gateway.address} took longer than 0 s$"):
        client.generate("alpha", "endless", turn_id="t9", timeout=0).result()
    for endless in (float("inf"), 1e300):
        assert client.models(timeout=endless).context_length == 2048


def test_a_stream_without_an_end_is_an_error(client):
    with pytest.raises(UnavailableError, match="before its end"):
        client.generate("alpha", "cut").result()


def test_no_gateway_is_unavailable(gateway):
    with Client("127.0.0.1:1", timeout=5) as nobody:
        with pytest.raises(UnavailableError):
            nobody.models()
        with pytest.raises(UnavailableError):
            nobody.generate("alpha", "hi").result()


def test_session(client, gateway):
    session = client.create_session(token_ids=[4, 5])
    appended = session.append(token_ids=[6])
    assert (appended.num_appended_tokens, appended.num_tokens) == (1, 3)
    result = session.generate("alpha", "go on", turn_id="t2", min_delta_tokens=3, max_tokens=1).result()
    assert result.token_ids == (4, 5, 6)
    request = gateway.last(session_pb2.GenerateTurnRequest)
    assert (request.tenant, request.session_id, request.turn_id) == ("acme", session.session_id, "t2")
    assert request.min_delta_tokens == 3
    assert (request.model, request.content.text, request.sampling.max_tokens) == ("alpha", "go on", 1)
    again = client.session(session.session_id)
    assert again.token_ids() == (4, 5, 6) and again.get().num_turns == 1
    session.delete()
    with pytest.raises(NotFoundError, match=session.session_id):
        session.generate("alpha").result()


def test_a_turn_without_content_sends_none(client, gateway):
    client.create_session(token_ids=[4]).generate("alpha").result()
    assert not gateway.last(session_pb2.GenerateTurnRequest).HasField("content")


def test_adapters_and_models(client, gateway):
    loaded = client.load_adapter("alpha-private", "/adapters/alpha", mode="private", workers=["decode-0"])
    assert (loaded.mode, loaded.worker_ids) == (AdapterMode.PRIVATE, ("decode-0",))
    assert gateway.last(model_pb2.LoadAdapterRequest).path == "/adapters/alpha"
    models = client.models()
    assert models.names == ("base", "alpha-private") and models.context_length == 2048
    assert "base" in models and "gamma" not in models and models[1] in models and len(models) == 2
    assert models.base is models[0]
    assert models.models[0].is_base and models.models[0].mode is None
    client.unload_adapter("alpha-private")
    with pytest.raises(NotFoundError):
        client.unload_adapter("alpha-private")
    with pytest.raises(InvalidInputError, match="private"):
        client.load_adapter("x", "/x", mode="both")


def test_cluster(client):
    cluster = client.cluster()
    assert cluster.block_size == 16
    assert (cluster.workers[0].worker_id, cluster.workers[0].role) == ("decode-0", Role.DECODE)
    assert cluster.left_out == (
        LeftOutWorker("decode-1", Role.DECODE, "c:1", 0, draining=True),
        LeftOutWorker("prefill-0", Role.PREFILL, "b:1", 4),
    )
