"""Blocks lent to other workers. A lease is a duration from now, never an absolute time; `now` is passed in.

The owner cannot see a one-sided read. So the reader asks at the end: `release` succeeds only if the lease never lapsed.
"""

import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from icarus.errors import FailedPreconditionError
from icarus.types import BlockId, LeaseId, RequestId


def draw_lease_id() -> LeaseId:
    """Never drawn twice, in this process or another."""
    return LeaseId(secrets.token_hex(8))


@dataclass
class _Lease:
    block_ids: tuple[BlockId, ...]
    ends_at: float
    prefill: RequestId | None


class LeaseTable:
    """The leases of one pool. Owned by the engine thread; references are the caller's to take and drop."""

    def __init__(self, duration_seconds: float):
        self.duration_seconds = duration_seconds
        self._leases: dict[LeaseId, _Lease] = {}
        self.granted = 0
        self.released = 0
        self.expired = 0

    def __len__(self) -> int:
        return len(self._leases)

    def grant(
        self, block_ids: Sequence[BlockId], now: float, prefill: RequestId | None = None, wanted: LeaseId | None = None
    ) -> LeaseId:
        """`prefill`: the request that made the blocks for the lease's reader. `wanted`: the id that the lease gets
        unless another has it."""
        lease_id = wanted if wanted and wanted not in self._leases else draw_lease_id()
        self._leases[lease_id] = _Lease(tuple(block_ids), now + self.duration_seconds, prefill)
        self.granted += 1
        return lease_id

    def of_prefill(self, request_id: RequestId) -> LeaseId | None:
        """The lease that a prefill ended in, while it lives."""
        return next((lease_id for lease_id, lease in self._leases.items() if lease.prefill == request_id), None)

    def renew(self, lease_id: LeaseId, now: float) -> None:
        """Raises FailedPreconditionError if the lease lapsed."""
        self._live(lease_id, now).ends_at = now + self.duration_seconds

    def release(self, lease_id: LeaseId, now: float) -> tuple[BlockId, ...]:
        """Ends a lease and gives its blocks. Raises FailedPreconditionError if it lapsed: the read may be wrong."""
        lease = self._live(lease_id, now)
        del self._leases[lease_id]
        self.released += 1
        return lease.block_ids

    def expire(self, now: float) -> list[tuple[BlockId, ...]]:
        """Ends the leases whose time is over and gives the blocks of each."""
        over = [lease_id for lease_id, lease in self._leases.items() if lease.ends_at <= now]
        self.expired += len(over)
        return [self._leases.pop(lease_id).block_ids for lease_id in over]

    def references(self) -> Counter[BlockId]:
        """How many leases hold each block."""
        return Counter(block_id for lease in self._leases.values() for block_id in lease.block_ids)

    def _live(self, lease_id: LeaseId, now: float) -> _Lease:
        lease = self._leases.get(lease_id)
        if lease is None or lease.ends_at <= now:
            raise FailedPreconditionError(
                f"lease {lease_id} lapsed (a lease lasts {self.duration_seconds} s unless renewed): "
                "discard what was read under it and compute instead"
            )
        return lease
