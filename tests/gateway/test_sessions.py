import pytest
from icarus_gateway.sessions import History, MemorySessionStore

from icarus.errors import ConflictError, NotFoundError, OverloadedError


def test_a_session_belongs_to_its_tenant():
    store = MemorySessionStore(10)
    session = store.create("a", History((1, 2)))
    assert store.get("a", session.session_id) == session
    for use in (store.get, store.delete, lambda *key: store.hold(*key).__enter__()):
        with pytest.raises(NotFoundError, match=session.session_id):
            use("b", session.session_id)
    store.delete("a", session.session_id)
    with pytest.raises(NotFoundError):
        store.get("a", session.session_id)


def test_one_at_a_time_and_nothing_without_commit():
    store = MemorySessionStore(10)
    key = ("a", store.create("a", History((1,))).session_id)
    with pytest.raises(RuntimeError), store.hold(*key) as session:
        for use in (store.delete, lambda *key: store.hold(*key).__enter__()):
            with pytest.raises(ConflictError, match=key[1]):
                use(*key)
        assert store.get(*key).history.token_ids == (1,)
        session.history.extended([2])
        raise RuntimeError
    assert store.get(*key).history == History((1,))
    with store.hold(*key) as session:
        session.commit(session.history.extended([2]))
    assert store.get(*key).history == History((1, 2))


def test_history_only_grows():
    store = MemorySessionStore(10)
    key = ("a", store.create("a", History((1, 2))).session_id)
    with store.hold(*key) as session:
        for wrong in ((1,), (1, 3, 4), ()):
            with pytest.raises(ValueError, match="append-only"):
                session.commit(History(wrong))
    assert store.get(*key).history.token_ids == (1, 2)


def test_there_is_a_limit():
    store = MemorySessionStore(1)
    first = store.create("a", History())
    with pytest.raises(OverloadedError, match="at most 1 sessions"):
        store.create("a", History())
    store.delete("a", first.session_id)
    store.create("a", History())
