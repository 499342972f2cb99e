"""A process that holds a pool of random bytes and lets others read it. Run by the tests, not by pytest.

Arguments: blocks, bytes a block, seed, UCX settings (KEY=VALUE, or -). Prints its metadata in hex; ends with stdin.
"""

import sys

import numpy as np

from icarus.transfer.nixl import NixlTransport
from icarus.transfer.transport import PoolRegion


def main(num_blocks: int, block_bytes: int, seed: int, settings: str) -> None:
    pool = np.random.default_rng(seed).integers(0, 256, (num_blocks, block_bytes), dtype=np.uint8)
    region = PoolRegion(pool.ctypes.data, block_bytes, num_blocks, "cpu")
    key, _, value = settings.partition("=")
    transport = NixlTransport(region, {key: value} if value else None)
    sys.stdout.write(transport.metadata().hex() + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    transport.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
