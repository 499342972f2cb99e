"""The other workers whose blocks this worker reads."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import grpc
import grpc.aio

from icarus.errors import DeadlineError, FailedPreconditionError, IcarusError
from icarus.rpc.channel import open_channel
from icarus.rpc.status import error_from_rpc
from icarus.transfer.thread import TransferThread
from icarus.worker.v1 import block_service_pb2, block_service_pb2_grpc

ANSWER_SECONDS = 30.0
"""A peer that takes longer to grant a lease or to describe its pool is of no use."""
_FORGET_SECONDS = 600.0
"""Much longer than any turn reads."""


@dataclass
class Peer:
    """One worker, known by its address."""

    address: str
    channel: grpc.aio.Channel
    blocks: block_service_pb2_grpc.BlockServiceStub
    connected_instance: str = ""
    """The start of the peer that the transport is connected to; empty before the first contact."""
    connecting: asyncio.Lock = field(default_factory=asyncio.Lock)
    last_used: float = 0.0


class PeerTable:
    """Peers by address, connected on first use and again when they have restarted, and forgotten when long unused: one
    that restarts may have another address."""

    def __init__(self, transfer: TransferThread, fingerprint: str, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._transfer = transfer
        self._fingerprint = fingerprint
        self._peers: dict[str, Peer] = {}
        self._closing: set[asyncio.Future[None]] = set()

    def get(self, address: str) -> Peer:
        peer = self._peers.get(address)
        if peer is None:
            self._forget_unused()
            channel = open_channel(address)
            peer = self._peers[address] = Peer(address, channel, block_service_pb2_grpc.BlockServiceStub(channel))
        peer.last_used = self._clock()
        return peer

    def _forget_unused(self) -> None:
        since = self._clock() - _FORGET_SECONDS
        for peer in [peer for peer in self._peers.values() if peer.last_used < since]:
            del self._peers[peer.address]
            with suppress(IcarusError):  # its queue is full, or it has stopped: whoever asks for a peer must not fail
                self._transfer.disconnect(peer.address)
            self._closing.add(closing := asyncio.ensure_future(peer.channel.close(None)))
            closing.add_done_callback(self._closing.discard)

    async def connect(self, peer: Peer, instance_id: str) -> None:
        """Makes the peer's pool readable, unless it is already. Raises FailedPreconditionError where its blocks are of
        another kind, UnavailableError or TransferError where it cannot be reached, DeadlineError where that takes
        longer than a read may."""
        limit = self._transfer.max_wait_seconds
        try:
            async with asyncio.timeout(limit):
                await self._connect(peer, instance_id)
        except TimeoutError:
            raise DeadlineError(f"worker {peer.address} was not connected to within {limit:g} s") from None

    async def _connect(self, peer: Peer, instance_id: str) -> None:
        async with peer.connecting:
            if peer.connected_instance == instance_id:
                return
            try:
                metadata = await peer.blocks.GetTransferMetadata(
                    block_service_pb2.GetTransferMetadataRequest(), timeout=ANSWER_SECONDS
                )
            except grpc.aio.AioRpcError as error:
                raise error_from_rpc(error, peer.address) from None
            if metadata.cache_fingerprint != self._fingerprint:
                raise FailedPreconditionError(
                    f"worker {peer.address} has cache fingerprint {metadata.cache_fingerprint}, this one "
                    f"{self._fingerprint}: model, precision, block size and layout must agree to exchange blocks"
                )
            connecting = self._transfer.connect(peer.address, metadata.agent_metadata, metadata.num_blocks)
            await asyncio.wrap_future(connecting)
            peer.connected_instance = metadata.instance_id

    def forget_connection(self, peer: Peer) -> None:
        """After a failed read: the next one connects afresh."""
        peer.connected_instance = ""

    async def close(self) -> None:
        for peer in self._peers.values():
            await peer.channel.close(None)
