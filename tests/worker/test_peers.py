"""Who the other workers are, over time."""

import numpy as np
import pytest
from engine.harness import Clock
from transfer.inprocess import InProcessTransport

from icarus.transfer.thread import TransferThread
from icarus.transfer.transport import PoolRegion, TransferError
from icarus.worker.peers import PeerTable


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
