"""Names of blocks: what must change them, and what must not."""

import pytest

from icarus.cache.hashing import BlockNames, block_hashes, cache_fingerprint, child_hash, root_hash

FINGERPRINT = cache_fingerprint("digest", "bfloat16", "rope", 16, "layout")


def test_a_partial_tail_has_no_name():
    root = root_hash(FINGERPRINT, "default")
    assert len(block_hashes(root, range(31), 16)) == 1
    assert len(block_hashes(root, range(32), 16)) == 2


def test_a_name_covers_the_whole_prefix():
    root = root_hash(FINGERPRINT, "default")
    first, second = block_hashes(root, [1, 2, 3, 4], 2)
    assert child_hash(first, [3, 4]) == second
    changed = block_hashes(root, [9, 2, 3, 4], 2)
    assert changed[0] != first
    assert changed[1] != second


def test_names_go_on_where_they_ended(monkeypatch):
    root, hashed = root_hash(FINGERPRINT, "default"), []
    names = BlockNames(root, 4)
    monkeypatch.setattr("icarus.cache.hashing.child_hash", lambda *args: (hashed.append(args), child_hash(*args))[1])
    for length, num_new in ((10, 2), (11, 0), (17, 2), (7, 0), (17, 3)):
        hashed.clear()
        names = names.extended(range(length))
        assert len(hashed) == num_new
        assert names.hashes == block_hashes(root, range(length), 4)
    assert names.first(9).hashes == names.hashes[:2]


@pytest.mark.parametrize(
    "other",
    [
        root_hash(FINGERPRINT, "another tenant"),
        root_hash(FINGERPRINT, "default", "private digest"),
        root_hash(cache_fingerprint("digest", "float16", "rope", 16, "layout"), "default"),
        root_hash(cache_fingerprint("digest", "bfloat16", "rope", 32, "layout"), "default"),
        root_hash(cache_fingerprint("another", "bfloat16", "rope", 16, "layout"), "default"),
        root_hash(cache_fingerprint("digest", "bfloat16", "another", 16, "layout"), "default"),
        root_hash(cache_fingerprint("digest", "bfloat16", "rope", 16, "another"), "default"),
    ],
)
def test_tenant_digest_and_fingerprint_keep_names_apart(other):
    assert block_hashes(other, range(16), 16) != block_hashes(root_hash(FINGERPRINT, "default"), range(16), 16)


def test_parts_cannot_run_into_each_other():
    assert cache_fingerprint("ab", "c", "r", 16, "l") != cache_fingerprint("a", "bc", "r", 16, "l")
