"""One of the two processes between which `icarus doctor` measures: `owner` lends a pool, `reader` reads it over NIXL.

Arguments: owner or reader, blocks, bytes a block, rounds (of the reader). The owner prints its metadata and ends with
its standard input; the reader takes them from there, and prints what it measured as JSON.
"""

import json
import sys

import numpy as np

from icarus.cli.doctor.path import METADATA, RESULT
from icarus.transfer.nixl import NixlTransport
from icarus.transfer.thread import TransferThread
from icarus.transfer.transport import PoolRegion

_TIMEOUT_SECONDS = 60.0


def main(role: str, num_blocks: int, block_bytes: int, rounds: int) -> None:
    content = np.random.default_rng(num_blocks).integers(0, 256, (num_blocks, block_bytes), dtype=np.uint8)
    pool = content if role == "owner" else np.full_like(content, 1)
    region = PoolRegion(pool.ctypes.data, block_bytes, num_blocks, "cpu")
    thread = TransferThread(lambda: NixlTransport(region), _TIMEOUT_SECONDS, max_queued=8)
    thread.start()
    if role == "owner":
        _tell(METADATA + thread.metadata.hex())
        sys.stdin.read()
    else:
        thread.connect("owner", bytes.fromhex(sys.stdin.readline()), num_blocks).result(_TIMEOUT_SECONDS)
        seconds = [_read(thread, num_blocks) for _ in range(rounds + 1)][1:]  # the first one sets the path up
        rate = num_blocks * block_bytes * rounds / sum(seconds)
        _tell(RESULT + json.dumps({"bytes_per_second": rate, "intact": bool((pool == content).all())}))
    thread.stop()


def _read(thread: TransferThread, num_blocks: int) -> float:
    """Seconds for one read of the whole pool."""
    blocks = range(num_blocks)
    pending = thread.read("owner", blocks, blocks)
    pending.settled.result(2 * _TIMEOUT_SECONDS)
    return pending.result.result().seconds


def _tell(line: str) -> None:
    sys.stdout.write(f"\n{line}\n")  # UCX's report may stop in the middle of a line
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
