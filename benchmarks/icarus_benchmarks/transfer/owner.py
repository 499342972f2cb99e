"""The process whose blocks `icarus bench transfer` reads. Arguments: blocks, bytes a block, seed.

Prints two lines, how our transport reaches its pool and how a bare NIXL agent does, and ends with its standard input.
"""

import sys

import numpy as np

from icarus.transfer.nixl import NixlTransport
from icarus.transfer.transport import PoolRegion
from icarus_benchmarks.transfer.bare_nixl import BareAgent


def pool_content(num_blocks: int, block_bytes: int, seed: int) -> np.ndarray:
    """[num_blocks, block_bytes] uint8: the reader makes the same to compare with."""
    return np.random.default_rng(seed).integers(0, 256, (num_blocks, block_bytes), dtype=np.uint8)


def main(num_blocks: int, block_bytes: int, seed: int) -> None:
    pool = pool_content(num_blocks, block_bytes, seed)
    region = PoolRegion(pool.ctypes.data, block_bytes, num_blocks, "cpu")
    transport, bare = NixlTransport(region), BareAgent("benchmark-owner", region)
    sys.stdout.write(f"{transport.metadata().hex()}\n{bare.describe()}\n")
    sys.stdout.flush()
    sys.stdin.read()
    transport.close()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
