"""Block ownership: states, eviction order, quarantine, and books that notice a fault."""

import random
from collections import Counter

import pytest

from icarus.cache.pool import BlockPool
from icarus.errors import IntegrityError
from icarus.types import BlockHash, BlockId


def name(i: int) -> BlockHash:
    return BlockHash(i.to_bytes(32, "little"))


def named_chain(pool: BlockPool, first: int, count: int) -> list[BlockId]:
    blocks = pool.allocate(count)
    assert blocks is not None
    for offset, block in enumerate(blocks):
        pool.name(block, name(first + offset), "a")
    return blocks


def test_a_released_named_block_is_found_again_and_a_nameless_one_is_free():
    pool = BlockPool(4)
    blocks = pool.allocate(2)
    pool.name(blocks[0], name(1), "a")
    pool.release(blocks)
    assert pool.match([name(1), name(2)]) == [blocks[0]]
    counts = pool.check(Counter())
    assert (counts.free, counts.cached, counts.used) == (3, 1, 0)


def test_eviction_takes_the_least_recently_used_and_the_end_of_a_chain_first():
    pool = BlockPool(6)
    old, new = named_chain(pool, 0, 3), named_chain(pool, 10, 3)
    pool.release(old)
    pool.release(new)
    pool.allocate(2)
    assert pool.match(map(name, range(3))) == old[:1]
    assert pool.match(map(name, range(10, 13))) == new
    assert pool.evictions == 2


def test_a_referenced_block_is_never_evicted():
    pool = BlockPool(2)
    held = named_chain(pool, 0, 1)
    pool.reference(held)
    pool.release(held)
    assert pool.allocate(2) is None
    assert pool.match([name(0)]) == held
    pool.check(Counter(held))


def test_private_copies_are_counted_once_a_specialist_and_go_with_the_block():
    pool = BlockPool(4)
    blocks = named_chain(pool, 0, 2)
    nameless = pool.allocate(1)
    assert nameless is not None
    for specialist in ("a", "b", "b", "c"):
        pool.note_user([*blocks, *nameless], specialist)
    pool.note_user(blocks[:1], "d")
    assert pool.num_extra_copies == 3 + 2
    pool.release(blocks)
    pool.release(nameless)
    pool.allocate(3)
    assert pool.match([name(0), name(1)]) == blocks[:1]
    assert pool.num_extra_copies == 3, "the end of the chain was evicted"
    pool.allocate(1)
    assert pool.num_extra_copies == 0


def test_a_block_that_is_used_again_has_none_of_its_users_left():
    pool = BlockPool(1)
    for first, specialist in ((0, "a"), (1, "b")):
        blocks = named_chain(pool, first, 1)
        pool.note_user(blocks, specialist)
        pool.release(blocks)
    assert pool.num_extra_copies == 0


def test_a_taken_name_leaves_the_second_block_nameless():
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    pool.name(first, name(1), "a")
    pool.name(second, name(1), "b")
    assert pool.writer(first) == "a"
    pool.release([first, second])
    assert pool.counts().cached == 1


def test_quarantined_blocks_are_nobodys_until_they_settle():
    pool = BlockPool(3)
    blocks = pool.allocate(2)
    pool.quarantine(blocks)
    assert pool.check(Counter()).quarantined == 2
    with pytest.raises(IntegrityError, match="cannot be quarantined"):
        pool.quarantine(blocks)
    assert pool.allocate(2) is None
    pool.settle(blocks)
    assert pool.allocate(3) is not None


def test_changes_are_numbered_without_gaps():
    pool = BlockPool(1)
    pool.release(named_chain(pool, 0, 1))
    assert [change.removed for change in pool.changes.take()[1]] == [False]
    pool.release(named_chain(pool, 1, 1))
    first, changes = pool.changes.take()
    assert first == 1
    assert [(change.block_hash, change.removed) for change in changes] == [(name(0), True), (name(1), False)]
    assert pool.changes.next_sequence == 3


def test_the_check_sees_a_leak_and_a_negative_count():
    pool = BlockPool(2)
    blocks = pool.allocate(1)
    with pytest.raises(IntegrityError, match="1 references"):
        pool.check(Counter())
    pool.check(Counter(blocks))
    pool.release(blocks)
    pool._blocks[0].num_references = -1
    with pytest.raises(IntegrityError, match="-1 references"):
        pool.check(Counter())


def test_random_use_keeps_the_books_balanced():
    random.seed(1)
    pool, held, quarantined, serial = BlockPool(40), [], [], 0
    for _ in range(3000):
        action = random.choice(["allocate", "match", "release", "quarantine", "settle"])
        if action == "allocate" and (blocks := pool.allocate(random.randint(1, 8))):
            for block in blocks[: random.randint(0, len(blocks))]:
                pool.name(block, name(serial), "a")
                serial += 1
            held.append(blocks)
        elif action == "match" and (blocks := pool.match([name(random.randrange(serial + 1))])):
            pool.reference(blocks)
            held.append(blocks)
        elif action == "release" and held:
            pool.release(held.pop(random.randrange(len(held))))
        elif action == "quarantine" and (blocks := pool.allocate(2)):
            pool.quarantine(blocks)
            quarantined.append(blocks)
        elif action == "settle" and quarantined:
            pool.settle(quarantined.pop())
        pool.check(Counter(block for blocks in held for block in blocks))
    assert pool.evictions > 0
