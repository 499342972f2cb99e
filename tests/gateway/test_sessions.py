import pytest
from icarus_gateway.sessions.history import History
from icarus_gateway.sessions.session_file import SessionFile
from icarus_gateway.sessions.store import SessionStore

from icarus.errors import ConfigError, ConflictError, InvalidInputError, NotFoundError, OverloadedError


def of(*ids):
    return History().extended(ids)


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture(params=["memory", "file"])
async def new_store(request, tmp_path):
    """Makes the test's store."""
    made = []

    def new(*args):
        file = SessionFile.open(tmp_path / "sessions.db", "base", "v") if request.param == "file" else None
        made.append(SessionStore(*args, file=file))
        return made[-1]

    yield new
    for store in made:
        await store.close()


async def hold(store, *key):
    store.hold(*key).__enter__()


async def get(store, *key):
    return store.get(*key)


async def delete(store, *key):
    await store.delete(*key)


async def test_a_session_belongs_to_its_tenant(new_store):
    store = new_store(10)
    session = await store.create("a", of(1, 2))
    assert store.get("a", session.session_id) == session
    for use in (get, delete, hold):
        with pytest.raises(NotFoundError, match=session.session_id):
            await use(store, "b", session.session_id)
    await store.delete("a", session.session_id)
    with pytest.raises(NotFoundError):
        store.get("a", session.session_id)


async def test_one_at_a_time_and_nothing_without_commit(new_store):
    store = new_store(10)
    key = ("a", (await store.create("a", of(1))).session_id)
    with pytest.raises(RuntimeError), store.hold(*key) as session:
        for use in (delete, hold):
            with pytest.raises(ConflictError, match=key[1]):
                await use(store, *key)
        assert store.get(*key).history.token_ids == (1,)
        session.history.extended([2])
        raise RuntimeError
    assert store.get(*key).history == of(1)
    with store.hold(*key) as session:
        await session.commit(session.history.extended([2]))
    assert store.get(*key).history == of(1).extended([2])


async def test_history_only_grows(new_store):
    store = new_store(10)
    key = ("a", (await store.create("a", of(1, 2))).session_id)
    with store.hold(*key) as session:
        for wrong in ((1,), (1, 3, 4), ()):
            with pytest.raises(ValueError, match="append-only"):
                await session.commit(of(*wrong))
    assert store.get(*key).history.token_ids == (1, 2)


async def test_there_is_a_limit(new_store):
    store = new_store(1)
    first = await store.create("a", of(1))
    with pytest.raises(OverloadedError, match="at most 1 sessions"):
        await store.create("b", History())
    assert (store.counts().live, store.counts().limit, store.counts().refused) == (1, 1, 1)
    await store.delete("a", first.session_id)
    await store.create("b", History())


async def test_empty_sessions_make_room_the_longest_unused_first(new_store):
    """One tenant that opens sessions and forgets them locks nobody out."""
    clock = Clock()
    store = new_store(4, 1000.0, clock)
    full = (await store.create("a", of(1))).session_id
    held, unused, used = [(await store.create("a", History())).session_id for _ in range(3)]
    clock.now += 1
    store.get("a", used)
    with store.hold("a", held):
        for gone in (unused, used):
            await store.create("b", of(2))
            with pytest.raises(NotFoundError):
                store.get("a", gone)
        with pytest.raises(OverloadedError):
            await store.create("b", of(2))
    assert store.get("a", full) and store.get("a", held)
    assert (store.counts().displaced, store.counts().refused, store.counts().created) == (2, 1, 6)


async def test_a_session_without_use_is_forgotten(new_store):
    clock = Clock()
    store = new_store(10, 30.0, clock)
    short = await store.create("a", of(1), 10.0)
    long = await store.create("a", of(2))
    assert (short.expires_in_seconds, long.expires_in_seconds) == (10.0, 30.0)
    clock.now += 9
    assert [s.expires_in_seconds for s in store.list("a", 0, 9).sessions] == [1.0, 21.0]
    assert store.get("a", short.session_id).expires_in_seconds == 10.0
    clock.now += 9
    assert await store.sweep() == 0 and store.get("a", short.session_id)
    clock.now += 10
    assert [s.session_id for s in store.list("a", 0, 9).sessions] == [long.session_id]
    for use in (get, delete, hold):
        with pytest.raises(NotFoundError, match=rf"'{short.session_id}' is not here \(any more\); begin a new one$"):
            await use(store, "a", short.session_id)
    clock.now += 30
    assert await store.sweep() == 1 and await store.sweep() == 0
    assert not store._tenants


async def test_a_turn_keeps_its_session_alive(new_store):
    clock = Clock()
    store = new_store(1, 10.0, clock)
    key = ("a", (await store.create("a", of(1))).session_id)
    with store.hold(*key) as session:
        clock.now += 100
        assert await store.sweep() == 0
        assert store.list("a", 0, 9).sessions[0].expires_in_seconds == 10.0
        with pytest.raises(OverloadedError):
            await store.create("b", of(2))
        await session.commit(session.history.extended([2]))
    clock.now += 9
    assert store.get(*key).history.token_ids == (1, 2)
    clock.now += 10
    await store.create("b", of(2))
    with pytest.raises(NotFoundError):
        store.get(*key)


async def test_ttls_out_of_range(new_store):
    store = new_store(10, 30.0)
    for ttl in (0.0, -1.0, 30.1, float("nan"), float("inf")):
        with pytest.raises(InvalidInputError, match=f"ttl_seconds is {ttl}"):
            await store.create("a", History(), ttl)
        assert not store.list("a", 0, 9).sessions
    with pytest.raises(ConfigError, match="session_ttl_seconds is 0"):
        SessionStore(10, 0)


async def test_pages_go_on_where_the_last_one_ended(new_store):
    store = new_store(10)
    ids = [(await store.create("a", of(i))).session_id for i in range(5)]
    await store.create("b", History())
    page = store.list("a", 0, 2)
    assert [s.session_id for s in page.sessions] == ids[:2] and page.next_after
    await store.delete("a", ids[1])
    await store.delete("a", ids[2])
    ids.append((await store.create("a", History())).session_id)
    page = store.list("a", page.next_after, 2)
    assert [s.session_id for s in page.sessions] == ids[3:5] and page.next_after
    page = store.list("a", page.next_after, 2)
    assert [s.session_id for s in page.sessions] == ids[5:] and page.next_after is None
    assert store.list("c", 0, 2).sessions == ()


def test_a_token_takes_four_bytes():
    history = of(*range(100_000, 200_000)).extended([2**32 - 1])
    assert len(history.packed) == 4 * history.num_tokens == 400_004
    assert history.last(2) == (199_999, 2**32 - 1) and history.last(0) == () and len(history.last(10**6)) == 100_001


def places_of(history):
    end = history.end
    return len(history.token_ids), end.num_turns, end.after_messages, end.answer_open


def test_the_first_tokens_of_a_history():
    asked = of(1, 2, 3).extended((4, 5), after_messages=True).extended((6,), answer_open=True)
    whole = asked.answered((7, 8, 9)).extended((10, 11), answer_open=False)
    whole = whole.extended((12, 13), after_messages=True)
    expected = {
        0: (0, 0, False, False),
        3: (3, 0, False, False),
        4: (4, 0, False, False),  # within messages
        5: (5, 0, True, False),
        6: (6, 0, False, True),
        8: (8, 0, False, True),  # within the answer
        9: (9, 1, False, True),
        10: (10, 1, False, True),  # within what closes it
        11: (11, 1, False, False),
        13: (13, 1, True, False),
    }
    for num_tokens, place in expected.items():
        first = whole.first(num_tokens)
        assert places_of(first) == place and first.token_ids == whole.token_ids[:num_tokens]
        assert first.first(num_tokens) == first
    assert whole.first(13) == whole
    for wrong in (-1, 14):
        with pytest.raises(InvalidInputError, match=f"num_tokens is {wrong}; the session has 13"):
            whole.first(wrong)
