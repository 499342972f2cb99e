"""Leases: durations, renewal, and the reader's proof at release."""

import pytest

from icarus.cache.leases import LeaseTable
from icarus.errors import FailedPreconditionError
from icarus.types import BlockId, LeaseId

BLOCKS = [BlockId(3), BlockId(5)]


def test_release_in_time_gives_the_blocks_back():
    table = LeaseTable(10)
    lease = table.grant(BLOCKS, now=0)
    assert len(table.references()) == 2
    assert table.release(lease, now=9.9) == tuple(BLOCKS)
    assert (len(table), table.released, table.expired) == (0, 1, 0)


def test_a_renewed_lease_lasts_its_full_duration_again():
    table = LeaseTable(10)
    lease = table.grant(BLOCKS, now=0)
    table.renew(lease, now=9)
    assert table.expire(now=15) == []
    assert table.release(lease, now=18) == tuple(BLOCKS)


def test_a_lapsed_lease_cannot_be_released_even_before_it_was_swept():
    table = LeaseTable(10)
    lease = table.grant(BLOCKS, now=0)
    with pytest.raises(FailedPreconditionError, match=f"lease {lease} lapsed"):
        table.release(lease, now=10)
    assert table.expire(now=10) == [tuple(BLOCKS)]
    with pytest.raises(FailedPreconditionError):
        table.renew(lease, now=10)
    assert table.expired == 1


def test_a_lease_gets_the_id_that_its_reader_wants_unless_it_is_taken():
    table = LeaseTable(10)
    assert table.grant(BLOCKS, now=0, wanted=LeaseId("mine")) == "mine"
    assert table.grant(BLOCKS, now=0, wanted=LeaseId("mine")) != "mine"
    assert len(table) == 2


def test_references_count_every_lease():
    table = LeaseTable(10)
    table.grant(BLOCKS, now=0)
    table.grant(BLOCKS[:1], now=0)
    assert table.references() == {BlockId(3): 2, BlockId(5): 1}
