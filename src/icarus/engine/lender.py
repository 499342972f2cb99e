"""Lends blocks of the pool to other workers: a lease, and a reference to each of its blocks, under a cap."""

import itertools
import logging
import time
from collections.abc import Callable, Sequence

from icarus.cache.leases import LeaseTable
from icarus.cache.pool import BlockPool
from icarus.engine.request import Request
from icarus.errors import OverloadedError
from icarus.types import BlockHash, BlockId, Grant, LeaseId, RequestId

logger = logging.getLogger(__name__)


class Lender:
    """Owned by the engine thread. What a lease's end makes room for is the engine's to admit."""

    def __init__(
        self,
        pool: BlockPool,
        leases: LeaseTable,
        instance_id: str,
        max_leased_blocks: int,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._pool = pool
        self._instance_id = instance_id
        self._max_leased_blocks = max_leased_blocks
        self._clock = clock
        self.leases = leases

    def check_promise(self, num_blocks: int, num_promised: int) -> None:
        """Raises OverloadedError unless `num_blocks` more can be promised to a prefill, beside the `num_promised`."""
        self._check_cap(len(self.leases.references()), num_promised, num_blocks)

    def acquire(self, block_hashes: Sequence[BlockHash], first_block: int, num_promised: int) -> Grant:
        """Leases the longest held prefix of `block_hashes`, possibly nothing (a grant without blocks has no lease), as
        far as the cap reaches, under which `num_promised` blocks are kept for prefills. Raises OverloadedError where it
        does not reach for one."""
        held, leased = self._pool.match(block_hashes), self.leases.references()
        room = self._max_leased_blocks - len(leased) - num_promised
        num_more = itertools.accumulate(block_id not in leased for block_id in held)
        block_ids = [block_id for block_id, num in zip(held, num_more, strict=True) if num <= room]
        if held and not block_ids:
            self._check_cap(len(leased), num_promised, 1)
        return self._grant(block_ids, block_hashes, first_block)

    def grant_prefilled(self, prefill: Request) -> Grant:
        """Leases what a prefill made to the reader that it was for."""
        first = prefill.lease_from_block
        block_ids, block_hashes = prefill.block_ids[first:], prefill.block_hashes[first:]
        return self._grant(block_ids, block_hashes, first, prefill.writer, prefill.request_id, prefill.lease_id)

    def renew(self, lease_id: LeaseId, now: float) -> float:
        """Seconds that the lease lasts from `now`: when it was asked for, which may be a step ago. Raises
        FailedPreconditionError if it had lapsed then."""
        self.leases.renew(lease_id, now)
        return self.leases.duration_seconds

    def release(self, lease_id: LeaseId, now: float) -> None:
        """Raises FailedPreconditionError if the lease had lapsed `now`, when its end was asked for, or was swept since:
        its blocks may have been overwritten during the read."""
        self._pool.release(self.leases.release(lease_id, now))

    def release_prefilled(self, request_id: RequestId) -> None:
        """Ends the lease that a prefill ended in, if there is one: its caller went away and never heard of it."""
        if lease_id := self.leases.of_prefill(request_id):
            self.release(lease_id, self._clock())

    def expire(self) -> bool:
        """Frees the blocks of leases whose time is over. Whether there were any."""
        expired = self.leases.expire(self._clock())
        for block_ids in expired:
            logger.warning("a lease of %d blocks expired before its reader released it", len(block_ids))
            self._pool.release(block_ids)
        return bool(expired)

    def _check_cap(self, num_leased: int, num_promised: int, num_more: int) -> None:
        if num_leased + num_promised + num_more > self._max_leased_blocks:
            raise OverloadedError(
                f"{num_leased} blocks are leased and {num_promised} promised to prefills, of at most "
                f"{self._max_leased_blocks}; {num_more} more were asked for"
            )

    def _grant(
        self,
        block_ids: Sequence[BlockId],
        block_hashes: Sequence[BlockHash],
        first_block: int,
        writer: str = "",
        prefill: RequestId | None = None,
        wanted: LeaseId | None = None,
    ) -> Grant:
        """`block_hashes`: the blocks' names, which may go on after them. `writer`: of blocks that lost theirs to a
        twin."""
        if not block_ids:
            return Grant(LeaseId(""), self._instance_id, 0.0, first_block)
        self._pool.reference(block_ids)
        return Grant(
            lease_id=self.leases.grant(block_ids, self._clock(), prefill, wanted),
            owner_instance_id=self._instance_id,
            duration_seconds=self.leases.duration_seconds,
            first_block=first_block,
            block_ids=tuple(block_ids),
            writers=tuple(self._pool.writer(block_id, otherwise=writer) for block_id in block_ids),
            last_block_hash=block_hashes[len(block_ids) - 1],
        )
