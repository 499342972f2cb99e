"""How blocks get from another worker's pool into ours. No torch.

A transport is owned by one thread (`transfer.thread`), which makes it and makes every call on it.
"""

import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from icarus.errors import IcarusError


class TransferError(IcarusError):
    """Blocks could not be read from a peer. The reader computes them instead."""


class ReadState(Enum):
    """Where a posted read stands. DONE and FAILED are settled: no more of its bytes can land."""

    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class PoolRegion:
    """A worker's KV pool as bytes: block i covers [base_address + i * block_bytes, ... + block_bytes)."""

    base_address: int
    block_bytes: int
    num_blocks: int
    device: str
    """cpu or cuda."""
    device_index: int = 0

    @property
    def num_bytes(self) -> int:
        return self.block_bytes * self.num_blocks


class Transport(ABC):
    """Reads blocks of peers into one registered pool. Every method is called by the owning thread alone."""

    def __init__(self, region: PoolRegion):
        self.region = region

    @abstractmethod
    def metadata(self) -> bytes:
        """What a peer needs to `connect` to this pool; made by `encode_metadata`."""

    @abstractmethod
    def connect(self, peer: str, metadata: bytes, num_blocks: int) -> None:
        """Makes a peer's pool of `num_blocks` blocks readable under the name `peer`.

        Replaces an earlier connection of that name; reads in flight on it go on. The same metadata again costs nothing
        while the connection is sound. TransferError: the metadata do not fit this pool, or the peer cannot be reached.
        """

    @abstractmethod
    def disconnect(self, peer: str) -> None:
        """Forgets a peer; its reads in flight go on. An unknown peer is no error."""

    @abstractmethod
    def post_read(self, peer: str, remote_blocks: Sequence[int], local_blocks: Sequence[int]) -> Any:
        """Starts reading block remote_blocks[i] of the peer into local_blocks[i]; may block for the whole copy.

        Returns a handle to poll. TransferError: nothing was posted and nothing will land.
        """

    @abstractmethod
    def poll(self, handle: Any) -> ReadState:
        """The state of a read. TransferError: it has failed, but its bytes may still land; it is polled on until it
        settles, which it may never do."""

    @abstractmethod
    def release(self, handle: Any) -> None:
        """Frees a settled handle. A posted read cannot be cancelled: releasing a pending one would not stop it."""

    @abstractmethod
    def close(self) -> None:
        """Ends every connection. Nothing lands afterwards."""


_VERSION = 1
_HEADER = struct.Struct("<4s8sH8sIQQQ")
_MAGIC = b"ICTX"


def encode_metadata(kind: str, region: PoolRegion, agent: bytes) -> bytes:
    """A pool's layout and the transport's own description of its `agent`, for a peer's `decode_metadata`."""
    return _HEADER.pack(
        *(_MAGIC, kind.encode(), _VERSION, region.device.encode(), region.device_index),
        *(region.base_address, region.block_bytes, region.num_blocks),
    ) + bytes(agent)


def decode_metadata(kind: str, own: PoolRegion, metadata: bytes, num_blocks: int) -> tuple[PoolRegion, bytes]:
    """The peer's pool and agent. TransferError when they cannot be read into the pool `own`."""
    if len(metadata) < _HEADER.size or not metadata.startswith(_MAGIC):
        raise TransferError(f"{len(metadata)} bytes of transfer metadata are not Icarus's; is the peer a worker?")
    _, peer_kind, version, device, index, base, block_bytes, peer_blocks = _HEADER.unpack_from(metadata)
    expected = (kind, _VERSION, own.block_bytes, num_blocks)
    found = (peer_kind.rstrip(b"\0").decode(errors="replace"), version, block_bytes, peer_blocks)
    if found != expected:
        raise TransferError(
            f"transfer metadata say (transport, version, block bytes, blocks) {found}, expected {expected}; "
            "run the same release, model, dtype and block size on all workers"
        )
    region = PoolRegion(base, block_bytes, peer_blocks, device.rstrip(b"\0").decode(errors="replace"), index)
    return region, metadata[_HEADER.size :]


def check_blocks(peer: str, remote_blocks: Sequence[int], num_remote: int, local_blocks: Sequence[int], num_local: int):
    """TransferError unless the two lists pair up, are not empty, and lie in their pools."""
    if not remote_blocks or len(remote_blocks) != len(local_blocks):
        raise TransferError(
            f"a read from {peer} pairs {len(remote_blocks)} remote with {len(local_blocks)} local blocks"
        )
    for side, blocks, count in (("remote", remote_blocks, num_remote), ("local", local_blocks, num_local)):
        if min(blocks) < 0 or max(blocks) >= count:
            raise TransferError(
                f"a read from {peer} names {side} blocks outside [0, {count}): {min(blocks)}..{max(blocks)}"
            )
