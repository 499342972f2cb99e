import random

from index_reports import apply, replace

from icarus.cache.changes import BlockChange
from icarus.cache.index import PrefixIndex
from icarus.types import BlockHash, WorkerId

D1, D2 = WorkerId("d1"), WorkerId("d2")
H = [BlockHash(bytes([i]) * 32) for i in range(8)]


def named(*which: int) -> list[BlockChange]:
    return [BlockChange(H[i], removed=False) for i in which]


def dropped(*which: int) -> list[BlockChange]:
    return [BlockChange(H[i], removed=True) for i in which]


def test_match_counts_leading_blocks():
    index = PrefixIndex()
    assert index.match(H) == {} == index.match([])
    assert apply(index, D1, "a", 0, named(0, 1, 2)) == 3
    assert apply(index, D2, "b", 0, named(0, 2)) == 2
    assert index.match(H) == {D1: 3, D2: 1}
    assert index.match(H[:2]) == {D1: 2, D2: 1}
    assert index.match(H[2:]) == {D1: 1, D2: 1}
    assert index.match(H[5:]) == {}
    apply(index, D1, "a", 3, dropped(1))
    assert index.match(H) == {D1: 1, D2: 1}
    index.drop(D1)
    index.drop(D1)
    assert index.match(H) == {D2: 1}
    assert index.sequence(D1) == 0


def test_gap_changes_nothing_and_a_snapshot_heals_it():
    index = PrefixIndex()
    apply(index, D1, "a", 0, named(0, 1))
    assert apply(index, D1, "a", 3, named(2)) == 2
    assert index.match(H) == {D1: 2}
    assert replace(index, D1, "a", 7, [H[0], H[1], H[2]]) == 7
    assert apply(index, D1, "a", 7, named(3)) == 8
    assert index.match(H) == {D1: 4}
    assert replace(index, D1, "a", 9, [H[1]]) == 9
    assert index.match(H) == {}
    assert index.num_blocks(D1) == 1


def test_a_repeated_report_counts_once():
    index = PrefixIndex()
    apply(index, D1, "a", 0, named(0, 1))
    assert apply(index, D1, "a", 2, dropped(1)) == 3
    assert apply(index, D1, "a", 0, [*named(0, 1), *dropped(1), *named(1)]) == 4
    assert apply(index, D1, "a", 0, named(0)) == 4
    assert index.match(H) == {D1: 2}
    assert replace(index, D1, "a", 2, []) == 4
    assert index.match(H) == {D1: 2}


def test_a_new_instance_begins_empty():
    index = PrefixIndex()
    apply(index, D1, "a", 0, named(0, 1))
    assert apply(index, D1, "b", 5, named(0)) == 0
    assert index.match(H) == {}
    assert apply(index, D1, "b", 0, named(0)) == 1
    assert index.match(H) == {D1: 1}


def test_against_plain_sets():
    """Random changes of three workers; `match` must say what counting by hand says."""
    rng = random.Random(0)
    index, held = PrefixIndex(), {WorkerId(str(i)): set() for i in range(3)}
    for _ in range(300):
        worker = rng.choice(list(held))
        i = rng.randrange(8)
        removed = H[i] in held[worker]
        apply(index, worker, "x", index.sequence(worker), [BlockChange(H[i], removed)])
        held[worker] ^= {H[i]}
        expected = {w: next((n for n, h in enumerate(H) if h not in held[w]), 8) for w in held}
        assert index.match(H) == {w: n for w, n in expected.items() if n}
