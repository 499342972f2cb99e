"""Who the other workers are, over time."""

from types import SimpleNamespace

import numpy as np
import pytest
from engine.harness import Clock
from transfer.inprocess import InProcessTransport

from icarus.errors import FailedPreconditionError
from icarus.rpc.server import Service, make_server
from icarus.transfer.thread import TransferThread
from icarus.transfer.transport import PoolRegion, TransferError
from icarus.worker.peers import PeerTable
from icarus.worker.v1 import block_service_pb2 as pb
from icarus.worker.v1 import block_service_pb2_grpc as pb_grpc


async def test_a_peer_that_nobody_reads_from_for_long_is_forgotten():
    clock, pools = Clock(), [np.zeros(64, dtype=np.uint8) for _ in range(2)]
    regions = [PoolRegion(pool.ctypes.data, 16, 4, "cpu") for pool in pools]
    owner = InProcessTransport(regions[0])
    transfer = TransferThread(lambda: InProcessTransport(regions[1]), 5.0, max_queued=8)
    transfer.start()
    table = PeerTable(transfer, "fingerprint", clock)
    old, kept = table.get("127.0.0.1:1"), table.get("127.0.0.1:2")
    transfer.connect(old.address, owner.metadata(), 4).result(5)
    transfer.read(old.address, [0], [0]).result.result(5)
    clock.now = 500.0
    assert table.get(kept.address) is kept
    clock.now = 700.0
    table.get("127.0.0.1:3")
    with pytest.raises(TransferError, match="no connection"):
        transfer.read(old.address, [0], [0]).result.result(5)
    assert table.get(kept.address) is kept and table.get(old.address) is not old
    await table.close()
    transfer.stop()


class Blocks(pb_grpc.BlockServiceServicer):
    """A peer that describes its pool as the test says."""

    def __init__(self, owner: InProcessTransport):
        self.metadata = pb.GetTransferMetadataResponse(
            instance_id="first", cache_fingerprint="fingerprint", agent_metadata=owner.metadata(), num_blocks=4
        )

    async def GetTransferMetadata(self, request, context):
        return self.metadata


@pytest.fixture
async def connecting():
    """(what a peer says, a pool like its own, ours, the table, the transfer thread, the peer)."""
    pools = [np.full((4, 16), i, dtype=np.uint8) for i in range(3)]
    transports = [InProcessTransport(PoolRegion(pool.ctypes.data, 16, 4, "cpu")) for pool in pools]
    blocks = Blocks(transports[0])
    server = make_server("127.0.0.1:0", [Service.of(blocks)])
    await server.start()
    transfer = TransferThread(lambda: transports[2], 5.0, max_queued=8)
    transfer.start()
    table = PeerTable(transfer, "fingerprint")
    yield SimpleNamespace(
        metadata=blocks.metadata,
        restarted=transports[1].metadata(),
        own=pools[2],
        table=table,
        transfer=transfer,
        peer=table.get(server.address),
    )
    await table.close()
    transfer.stop()
    await server.drain(0)


async def test_a_peer_of_another_cache_is_not_read_from(connecting):
    connecting.metadata.cache_fingerprint = "another"
    with pytest.raises(FailedPreconditionError, match="cache fingerprint another, this one fingerprint"):
        await connecting.table.connect(connecting.peer, "first")
    assert not connecting.peer.connected_instance


async def test_a_peer_that_has_restarted_is_connected_to_again(connecting):
    peer = connecting.peer
    await connecting.table.connect(peer, "first")
    connecting.metadata.instance_id, connecting.metadata.agent_metadata = "second", connecting.restarted
    for instance, content in (("first", 0), ("second", 1)):
        await connecting.table.connect(peer, instance)
        connecting.transfer.read(peer.address, [3], [0]).result.result(5)
        assert connecting.own[0, 0] == content
