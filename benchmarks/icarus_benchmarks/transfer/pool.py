"""The pool of blocks that each of the two processes has, in its machine's or its GPU's memory."""

import numpy as np
import torch
from torch import Tensor

from icarus.transfer.transport import PoolRegion


def random_pool(num_blocks: int, block_bytes: int, seed: int, device: str) -> Tensor:
    """[num_blocks, block_bytes] uint8: the reader makes the same to compare with."""
    content = np.random.default_rng(seed).integers(0, 256, (num_blocks, block_bytes), dtype=np.uint8)
    return torch.from_numpy(content).to(device)


def region_of(pool: Tensor) -> PoolRegion:
    """For NIXL in the calling thread, which has the GPU's context afterwards."""
    wait_for(pool)
    num_blocks, block_bytes = pool.shape
    return PoolRegion(pool.data_ptr(), block_bytes, num_blocks, pool.device.type, pool.device.index or 0)


def wait_for(pool: Tensor) -> None:
    """What was done to the pool is done: NIXL knows nothing of streams."""
    if pool.is_cuda:
        torch.cuda.synchronize(pool.device)
