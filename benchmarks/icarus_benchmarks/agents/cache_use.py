"""What a run did to the workers' pools.

Each run has a tenant of its own, so it finds nothing of earlier runs. Their blocks are still there, but they were used
before any of the run's: the pools evict the least recently used, so they all go before the first of the run's own.
"""

import asyncio
import time
from dataclasses import dataclass

from icarus.client import AsyncClient, Cluster
from icarus.errors import UnavailableError

_SETTLE_SECONDS = 10.0


@dataclass(frozen=True)
class CacheUse:
    """Of one run, over all workers."""

    kv_written_tokens: int
    """KV positions written by computation, generated and recomputed ones included."""
    evicted_blocks: int
    """Of the run's own."""
    kv_bytes_held: int
    """Of the run's own, at its end; copies on several workers count each."""
    kv_bytes_pool: int
    preemptions: int
    transfer_bytes: int


async def settled(client: AsyncClient) -> Cluster:
    """The cluster once every worker answers, nothing runs and no block is lent."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        cluster = await client.cluster()
        busy = cluster.left_out or any(worker.running_requests or worker.used_blocks for worker in cluster.workers)
        if not busy or time.monotonic() > deadline:
            return cluster
        await asyncio.sleep(0.05)


def cache_use(before: Cluster, after: Cluster) -> CacheUse:
    """What happened between two settled states. Raises UnavailableError where a worker is missing in one of them."""
    if [worker.worker_id for worker in before.workers] != [worker.worker_id for worker in after.workers]:
        raise UnavailableError("a worker did not answer before or after the run; its log says more")
    pairs = list(zip(before.workers, after.workers, strict=True))
    evicted = [new.evicted_blocks - old.evicted_blocks for old, new in pairs]
    return CacheUse(
        kv_written_tokens=sum(new.kv_written_tokens - old.kv_written_tokens for old, new in pairs),
        evicted_blocks=sum(max(0, count - old.cached_blocks) for count, (old, _) in zip(evicted, pairs, strict=True)),
        kv_bytes_held=sum(
            (new.cached_blocks + new.used_blocks - max(0, old.cached_blocks - count)) * new.block_bytes
            for count, (old, new) in zip(evicted, pairs, strict=True)
        ),
        kv_bytes_pool=sum(new.total_blocks * new.block_bytes for _, new in pairs),
        preemptions=sum(new.preemptions - old.preemptions for old, new in pairs),
        transfer_bytes=sum(new.transfer_bytes - old.transfer_bytes for old, new in pairs),
    )
