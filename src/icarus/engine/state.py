"""What the debug RPC, heartbeats and metrics say of an engine."""

from collections.abc import Mapping
from dataclasses import dataclass

from icarus.cache.leases import LeaseTable
from icarus.cache.pool import BlockPool
from icarus.engine.runner import Runner
from icarus.engine.scheduler import Scheduler
from icarus.types import PoolCounts


@dataclass(frozen=True)
class EngineState:
    """Between two steps. Counts of events are since the start."""

    pool: PoolCounts
    private_blocks: int
    """Blocks that caches of each specialist's own would hold, for what is in use or cached here."""
    leased_blocks: int
    kv_written_tokens: int
    kv_written_by: Mapping[str, int]
    """By the specialist whose turn it was ("" for the base)."""
    running_requests: int
    waiting_requests: int
    leases_held: int
    leases_granted: int
    leases_released: int
    leases_expired: int
    preemptions: int
    evicted_blocks: int

    @property
    def in_use(self) -> bool:
        """Whether a request or a reader has any block, or waits for some."""
        return bool(self.running_requests or self.waiting_requests or self.leases_held)


def read_state(
    counts: PoolCounts, pool: BlockPool, scheduler: Scheduler, leases: LeaseTable, runner: Runner
) -> EngineState:
    """`counts`: the pool's, checked or not."""
    return EngineState(
        pool=counts,
        private_blocks=counts.used + counts.cached + pool.num_extra_copies,
        leased_blocks=len(leases.references()),
        kv_written_tokens=runner.kv_rows_written,
        kv_written_by=dict(runner.written_by),
        running_requests=len(scheduler.running) + len(scheduler.landing),
        waiting_requests=len(scheduler.waiting),
        leases_held=len(leases),
        leases_granted=leases.granted,
        leases_released=leases.released,
        leases_expired=leases.expired,
        preemptions=scheduler.preemptions,
        evicted_blocks=pool.evictions,
    )
