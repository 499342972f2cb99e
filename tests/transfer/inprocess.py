"""The transport of unit tests: pools of one process, copied by `memmove`."""

import ctypes
import itertools
import threading
from collections.abc import Sequence

from icarus.transfer.transport import (
    PoolRegion,
    ReadState,
    TransferError,
    Transport,
    check_blocks,
    decode_metadata,
    encode_metadata,
)

_KIND = "inproc"
_regions: dict[bytes, PoolRegion] = {}
_lock = threading.Lock()
_ids = itertools.count()


class InProcessTransport(Transport):
    """Reads pools in this process's own memory, found by an id that the metadata carry. A read is done when posted."""

    def __init__(self, region: PoolRegion):
        if region.device != "cpu":
            raise TransferError(f"the in-process transport reads cpu memory, not {region.device}; use nixl")
        super().__init__(region)
        self._id = str(next(_ids)).encode()
        self._peers: dict[str, bytes] = {}
        with _lock:
            _regions[self._id] = region

    def metadata(self) -> bytes:
        return encode_metadata(_KIND, self.region, self._id)

    def connect(self, peer: str, metadata: bytes, num_blocks: int) -> None:
        self._peers.pop(peer, None)
        _, agent = decode_metadata(_KIND, self.region, metadata, num_blocks)
        self._peers[peer] = agent

    def disconnect(self, peer: str) -> None:
        self._peers.pop(peer, None)

    def post_read(self, peer: str, remote_blocks: Sequence[int], local_blocks: Sequence[int]) -> ReadState:
        if peer not in self._peers:
            raise TransferError(f"no connection to {peer}; connect first")
        with _lock:
            remote, local = _regions.get(self._peers[peer]), self.region
            if remote is None:
                raise TransferError(f"the pool of {peer} is gone; connect again when it is back")
            check_blocks(peer, remote_blocks, remote.num_blocks, local_blocks, local.num_blocks)
            for source, target in zip(remote_blocks, local_blocks, strict=True):
                size = local.block_bytes
                ctypes.memmove(local.base_address + target * size, remote.base_address + source * size, size)
        return ReadState.DONE

    def poll(self, handle: ReadState) -> ReadState:
        return handle

    def release(self, handle: ReadState) -> None:
        pass

    def close(self) -> None:
        with _lock:
            _regions.pop(self._id, None)
        self._peers.clear()
