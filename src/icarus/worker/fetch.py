"""Brings a request's missing blocks from other workers: lease, read, release, and only then believe.

What was read counts only after the read is DONE and the owner's answer to the release says that the lease never
lapsed. Everything else (a dead peer, a lapsed lease, a stale index) costs time, not correctness: the engine computes.
"""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from icarus import tracing
from icarus.engine.request import Landing
from icarus.errors import DeadlineError, IcarusError
from icarus.transfer.posted_reads import PendingRead, ReadResult
from icarus.transfer.thread import TransferThread
from icarus.types import BlockHash, BlockId, BlockSource, Grant
from icarus.worker.fetch_record import FetchFailure, FetchRecord, UnsettledReadError
from icarus.worker.peers import Peer, PeerTable
from icarus.worker.remote_lease import acquire_lease, held_lease, release_lease
from icarus.worker.v1 import block_service_pb2

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WantedBlocks:
    """Blocks [first_block, first_block + n) of a prompt: their names and where they go in this worker's pool."""

    first_block: int
    block_hashes: Sequence[BlockHash]
    block_ids: Sequence[BlockId]
    block_size: int

    def after(self, count: int) -> "WantedBlocks":
        """All but the first ones."""
        return WantedBlocks(
            self.first_block + count, self.block_hashes[count:], self.block_ids[count:], self.block_size
        )


@dataclass(frozen=True)
class UnsettledRead:
    """Blocks of this worker's pool that a posted read may still write to until `settled` completes."""

    blocks: tuple[BlockId, ...]
    settled: Future[None]


class BlockFetch:
    """One turn's reads. After a timeout or a cancellation `take_unsettled` tells what may still be written to."""

    def __init__(self, peers: PeerTable, transfer: TransferThread, record: FetchRecord, tenant: str, turn_id: str):
        self._record = record
        self._peers = peers
        self._transfer = transfer
        self._tenant = tenant
        self._turn_id = turn_id
        self._unsettled: UnsettledRead | None = None
        self.num_reads = 0
        self.num_bytes = 0

    def take_unsettled(self) -> UnsettledRead | None:
        """The read that may still write, if there is one. It is given once: the taker quarantines its blocks."""
        read, self._unsettled = self._unsettled, None
        return None if read is None or read.settled.done() else read

    async def from_sources(self, wanted: WantedBlocks, sources: Sequence[BlockSource]) -> Landing:
        """Reads from the sources in turn, each what it has after those before it. Raises UnsettledReadError."""
        with tracing.span("fetch", sources=len(sources), wanted_blocks=len(wanted.block_ids)):
            return await self._from_sources(wanted, sources)

    async def _from_sources(self, wanted: WantedBlocks, sources: Sequence[BlockSource]) -> Landing:
        writers: tuple[str, ...] = ()
        for source in sources:
            rest = wanted.after(len(writers))
            count = source.num_blocks - rest.first_block
            if count <= 0:
                continue
            peer = self._peers.get(source.address)
            try:
                grant = await acquire_lease(peer, self._request(rest, count))
                if not grant.block_ids:
                    self._record.failures[FetchFailure.GONE] += 1
                    continue
                writers += await self._read(peer, rest, grant)
            except IcarusError as error:
                self._record.failed(error)
                if isinstance(error, UnsettledReadError):
                    raise
                logger.warning("nothing read from %s: %s", source.worker_id, error)
        return Landing(writers, len(writers) * wanted.block_size)

    async def from_grant(self, wanted: WantedBlocks, address: str, grant: Grant, num_cached_tokens: int) -> Landing:
        """Reads what a prefill worker leased to this turn; of it, tokens below num_cached_tokens were cached there,
        the others computed for this turn. Raises UnsettledReadError."""
        try:
            with tracing.span("fetch", sources=1, wanted_blocks=len(wanted.block_ids)):
                writers = await self._read(self._peers.get(address), wanted, grant)
        except IcarusError as error:
            self._record.failed(error)
            if isinstance(error, UnsettledReadError):
                raise
            logger.warning("nothing read from prefill worker %s: %s", address, error)
            return Landing()
        num_landed = len(writers) * wanted.block_size
        num_cached = num_cached_tokens - wanted.first_block * wanted.block_size
        return Landing(writers, max(0, min(num_cached, num_landed)))

    def _request(self, wanted: WantedBlocks, count: int) -> block_service_pb2.AcquireLeaseRequest:
        return block_service_pb2.AcquireLeaseRequest(
            tenant=self._tenant,
            turn_id=self._turn_id,
            block_hashes=wanted.block_hashes[:count],
            first_block=wanted.first_block,
        )

    async def _read(self, peer: Peer, wanted: WantedBlocks, grant: Grant) -> tuple[str, ...]:
        """Writers of the blocks that were read and are valid."""
        async with held_lease(peer, grant):
            _require_wanted(wanted, grant)
            await self._peers.connect(peer, grant.owner_instance_id)
            count = len(grant.block_ids)
            target = tuple(wanted.block_ids[:count])
            with tracing.span("transfer", peer=peer.address, blocks=count) as span:
                pending = self._transfer.read(peer.address, grant.block_ids, target)
                self._unsettled = UnsettledRead(target, pending.settled)
                result = await self._result(peer, pending)
                span.set_attributes({"icarus.bytes": result.num_bytes})
            await release_lease(peer, grant)
        self._record.read(result)
        self.num_reads += 1
        self.num_bytes += result.num_bytes
        return grant.writers

    async def _result(self, peer: Peer, pending: PendingRead) -> ReadResult:
        try:
            return await self._answer(pending)
        except IcarusError as error:
            self._peers.forget_connection(peer)
            if not pending.settled.done():
                raise UnsettledReadError(str(error)) from error
            raise

    async def _answer(self, pending: PendingRead) -> ReadResult:
        """The transfer thread ends a read that takes too long, unless it hangs itself."""
        limit = self._transfer.max_wait_seconds
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(pending.result)), limit)
        except TimeoutError:
            raise DeadlineError(f"the transfer thread did not answer for {limit:g} s: it hangs") from None


def _require_wanted(wanted: WantedBlocks, grant: Grant) -> None:
    """Blocks land by position, so they must be those that this worker's names say: a name binds all before it."""
    if grant.first_block != wanted.first_block:
        raise IcarusError(f"asked for blocks from {wanted.first_block} on, granted from {grant.first_block} on")
    num_granted = len(grant.block_ids)
    if num_granted > len(wanted.block_hashes) or wanted.block_hashes[num_granted - 1] != grant.last_block_hash:
        raise IcarusError(
            f"the last of {num_granted} granted blocks has the name {grant.last_block_hash.hex()}, which is not this "
            "prompt's there: they were made with another adapter, tenant or model"
        )
