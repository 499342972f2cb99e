"""The process whose blocks `icarus bench transfer` reads. Arguments: blocks, bytes a block, seed, device, and the file
descriptor to answer on: UCX writes its log to standard output.

Writes two lines, how our transport reaches its pool and how a bare NIXL agent does, and ends with its standard input.
"""

import os
import sys

from icarus.transfer.nixl import NixlTransport
from icarus_benchmarks.transfer.bare_nixl import BareAgent
from icarus_benchmarks.transfer.pool import random_pool, region_of


def main(num_blocks: int, block_bytes: int, seed: int, device: str, answers: int) -> None:
    pool = random_pool(num_blocks, block_bytes, seed, device)
    region = region_of(pool)
    transport, bare = NixlTransport(region), BareAgent("benchmark-owner", region)
    with os.fdopen(answers, "w") as file:
        file.write(f"{transport.metadata().hex()}\n{bare.describe()}\n")
    sys.stdin.read()
    transport.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
