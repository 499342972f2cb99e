"""What callers send, right and wrong, over real processes. After each test every block is free again and the books
balance (the `client` fixture)."""

import shutil

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from services.test_cancellation import decoding_held
from services.test_chain import ids
from tiny import PRIVATE_TARGETS, tiny_adapter

from icarus.adapters.metadata import AdapterMetadata, write_metadata
from icarus.client import AsyncClient
from icarus.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidInputError,
    NotFoundError,
)
from icarus.types import AdapterMode, FinishReason

BAD_TURNS = {
    "unknown model": (NotFoundError, "model 'nobody' is not here; there are: tiny, both, s0", {"model": "nobody"}),
    "empty prompt": (InvalidInputError, "content.token_ids is empty", {"token_ids": []}),
    "empty text": (InvalidInputError, "content.text is empty", {"token_ids": None, "text": ""}),
    "token id": (
        InvalidInputError,
        r"token_ids\[1\] is 320; the model's vocabulary is \[0, 320\)",
        {"token_ids": [5, 320]},
    ),
    "max_tokens": (InvalidInputError, "max_tokens is 0; it must be at least 1", {"max_tokens": 0}),
    "negative max_tokens": (InvalidInputError, "max_tokens is -3", {"max_tokens": -3}),
    "context": (
        InvalidInputError,
        r"prompt of 30 tokens \+ max_tokens 1000 = 1030, beyond the context of 1024",
        {"max_tokens": 1000},
    ),
    "temperature": (InvalidInputError, "temperature is -1.0", {"temperature": -1.0}),
    "top_p": (InvalidInputError, "top_p is 0.0", {"top_p": 0.0}),
    "top_k": (InvalidInputError, "top_k is -1", {"top_k": -1}),
}


@pytest.mark.parametrize("case", BAD_TURNS)
def test_a_bad_turn_is_refused_and_the_next_good_one_works(client, case):
    error, message, arguments = BAD_TURNS[case]
    good = {"model": "s0", "token_ids": ids(30, 1), "max_tokens": 2}
    with pytest.raises(error, match=message):
        client.generate(**{**good, **arguments}).result()
    assert len(client.generate(**good).result().token_ids) == 2


def test_a_bad_turn_leaves_its_session_as_it_was(client):
    session = client.create_session(token_ids=ids(30, 2))
    with pytest.raises(NotFoundError):
        session.generate("nobody", token_ids=[7], max_tokens=2).result()
    with pytest.raises(InvalidInputError):
        session.generate("s0", token_ids=[7], max_tokens=10_000).result()
    assert session.token_ids() == tuple(ids(30, 2))
    session.delete()
    for call in (session.token_ids, session.delete, lambda: session.append("more")):
        with pytest.raises(NotFoundError, match=session.session_id):
            call()


def test_a_cancelled_turn_leaves_its_session_as_it_was(system, client):
    session = client.create_session(token_ids=ids(30, 3))
    with decoding_held(system):
        with session.generate("s0", token_ids=[7, 8], max_tokens=800, ignore_eos=True) as stream:
            next(stream)
        system.wait_until_idle()
    assert session.token_ids() == tuple(ids(30, 3))
    assert session.generate("s1", max_tokens=3, ignore_eos=True).result().usage.prompt_tokens == 30


def test_a_session_of_messages_grows_by_the_templates_delta(client):
    session = client.create_session(messages=[{"role": "user", "content": "hello"}])
    opened = len(session.token_ids())
    first = session.generate("s0", max_tokens=5, ignore_eos=True).result()
    assert first.usage.prompt_tokens == opened + len("<|im_start|>assistant\n") - len("<|im_start|>") + 1
    history = session.token_ids()
    assert history[-5:] == first.token_ids
    second = session.generate("s1", messages=[{"role": "user", "content": "again"}], max_tokens=5).result()
    assert session.token_ids()[: len(history)] == history
    assert second.usage.cached_tokens > 0
    session.delete()


def test_a_stop_string_trims_the_text_and_keeps_the_ids(client):
    whole = client.generate("s0", token_ids=ids(30, 4), max_tokens=60, ignore_eos=True).result()
    stop = next(c for c in whole.text[4:] if c.isascii() and c.isalnum())
    session = client.create_session(token_ids=ids(30, 4))
    turn = session.generate("s0", max_tokens=60, ignore_eos=True, stop=[stop]).result()
    assert turn.finish_reason == FinishReason.STOP
    assert turn.text == whole.text[: whole.text.index(stop)]
    assert turn.token_ids == whole.token_ids[: len(turn.token_ids)]
    assert session.token_ids() == (*ids(30, 4), *turn.token_ids)
    session.delete()


def test_a_seed_repeats_a_sampled_turn(client):
    sampling = {"max_tokens": 12, "temperature": 1.5, "top_p": 0.95, "top_k": 50, "ignore_eos": True}
    first = client.generate("s0", token_ids=ids(30, 5), seed=11, **sampling).result()
    again = client.generate("s0", token_ids=ids(30, 5), seed=11, **sampling).result()
    other = client.generate("s0", token_ids=ids(30, 5), seed=12, **sampling).result()
    assert first.token_ids == again.token_ids != other.token_ids
    assert client.generate("s0", token_ids=ids(30, 5), **sampling).result().seed is not None


async def test_the_asyncio_client_plays_a_session(system):
    async with AsyncClient(system.address) as client:
        session = await client.create_session("A question:")
        stream = session.generate("s0", max_tokens=6, ignore_eos=True)
        pieces = [delta async for delta in stream]
        assert sum(len(piece.token_ids) for piece in pieces) == 6
        assert (await stream.result()).text == "".join(piece.text for piece in pieces)
        await session.delete()


@pytest.fixture
def adapter(base, tmp_path):
    """Copies of adapters under names of their own."""

    def make(name: str, **kwargs):
        return tiny_adapter(tmp_path / name, base, **kwargs)

    return make


def test_adapters_that_cannot_be_served_are_refused(system, client, adapter):
    with_kv, no_word, other_base, truncated = (
        adapter("kv", targets=PRIVATE_TARGETS),
        adapter("plain"),
        adapter("other"),
        adapter("cut"),
    )
    write_metadata(other_base, AdapterMetadata(AdapterMode.SHARED, "0" * 64))
    weights = truncated / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    shutil.copy(system.specialists.folder("s0") / "icarus.json", with_kv)
    shutil.copy(system.specialists.folder("s0") / "icarus.json", truncated)
    for folder, error, message in (
        (with_kv, InvalidInputError, "k_proj and v_proj, so it needs a KV cache of its own"),
        (no_word, FailedPreconditionError, "private"),
        (other_base, FailedPreconditionError, "0" * 64),
        (truncated, InvalidInputError, "adapter_model.safetensors"),
        (with_kv / "nowhere", InvalidInputError, "is not a folder"),
    ):
        with pytest.raises(error, match=message):
            client.load_adapter("new", str(folder))
        assert "new" not in {model.name for model in client.models()}
    client.load_adapter("new", str(with_kv), mode="private")
    client.generate("new", token_ids=ids(20, 6), max_tokens=2).result()
    with pytest.raises(AlreadyExistsError):
        client.load_adapter("new", str(no_word), mode="private")
    client.unload_adapter("new")
    with pytest.raises(NotFoundError):
        client.generate("new", token_ids=ids(20, 6), max_tokens=2).result()


def test_health_and_reflection_answer_on_every_service(system):
    addresses = [system.address, *(worker.address for worker in system.workers().values())]
    for address in addresses:
        with grpc.insecure_channel(address) as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            database = ProtoReflectionDescriptorDatabase(channel)
            own = [name for name in database.get_services() if name.startswith("icarus.")]
            assert own
            pool = DescriptorPool(database)
            assert all(pool.FindServiceByName(name).methods for name in own)
