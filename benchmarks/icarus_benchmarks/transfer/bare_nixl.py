"""NIXL without Icarus: what its bindings reach over the same memory when a loop does nothing else."""

import importlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from icarus.errors import UnavailableError
from icarus.transfer.nixl import backend_parameters
from icarus.transfer.transport import PoolRegion

nixl: Any = importlib.import_module("nixl")  # its names come from an extension module
_PROGRESS_DELAY_MICROSECONDS = 1000
"""As our transport's: with the default an idle agent takes a core from its neighbour."""


class BareAgent:
    """One NIXL agent over UCX, with our transport's settings and one registered pool, one descriptor a block."""

    def __init__(self, name: str, region: PoolRegion):
        self._name, self._region = name, region
        config: Any = nixl.nixlAgentConfig()
        config.useProgThread = True
        config.pthrDelay = _PROGRESS_DELAY_MICROSECONDS
        self._agent: Any = nixl.nixlAgent(name, config)
        self._backend = self._agent.createBackend("UCX", backend_parameters(region))
        self._kind = nixl.VRAM_SEG if region.device == "cuda" else nixl.DRAM_SEG
        entry = (region.base_address, region.num_bytes, region.device_index, "")
        memory = nixl.nixlRegDList(self._kind, [entry])
        self._agent.registerMem(memory, [self._backend])
        self._local = self._prepare(nixl.NIXL_INIT_AGENT, region.base_address)

    def describe(self) -> str:
        """What a peer's `connect` needs, as one line."""
        return json.dumps([self._name, self._region.base_address, self._agent.getLocalMD().hex()])

    def connect(self, description: str) -> None:
        """To a pool of the same shape."""
        name, address, metadata = json.loads(description)
        self._agent.loadRemoteMD(bytes.fromhex(metadata))
        self._remote = self._prepare(name, address)

    def read(self, remote_blocks: Sequence[int], local_blocks: Sequence[int]) -> None:
        """Posts one read and spins until it is done. Raises UnavailableError where it fails."""
        local, remote = (np.asarray(blocks, dtype=np.int32) for blocks in (local_blocks, remote_blocks))
        handles = self._local, local, self._remote, remote
        request = self._agent.makeXferReq(nixl.NIXL_READ, *handles, b"", [self._backend])
        status = self._agent.postXferReq(request, b"")
        while status == nixl.NIXL_IN_PROG:
            status = self._agent.getXferStatus(request)
        self._agent.releaseXferReq(request)
        if status != nixl.NIXL_SUCCESS:
            raise UnavailableError(f"a bare NIXL read of {len(local)} blocks ended with {status}")

    def _prepare(self, agent: str, base_address: int) -> int:
        region = self._region
        rows = np.zeros((region.num_blocks, 3), dtype=np.uint64)
        rows[:, 0] = base_address + np.arange(region.num_blocks, dtype=np.uint64) * region.block_bytes
        rows[:, 1] = region.block_bytes
        rows[:, 2] = region.device_index
        return self._agent.prepXferDlist(agent, nixl.nixlXferDList(self._kind, rows), [self._backend])
