"""Names of blocks: what made a block decides its hash (docs/architecture.md, "A block").

A chain starts at a root that binds everything a prompt's blocks share, then each full block hashes its parent and its
own token ids. Workers and the gateway compute the same names from the same inputs.
"""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from icarus.types import BlockHash

_VERSION = b"icarus-block-v1"
_HASH_BYTES = hashlib.sha256().digest_size


def _encode(*parts: bytes) -> bytes:
    """Length-prefixed, so that no two different lists of parts encode alike."""
    return b"".join(struct.pack("<Q", len(part)) + part for part in parts)


def _digest(*parts: bytes) -> bytes:
    return hashlib.sha256(_encode(_VERSION, *parts)).digest()


def tenant_salt(tenant: str) -> bytes:
    """The part of a name that keeps tenants apart. Derived from the tenant by the server, never sent by a caller."""
    return _digest(b"tenant", tenant.encode())


def cache_fingerprint(base_digest: str, dtype: str, model: str, block_size: int, layout: str) -> str:
    """What two workers must agree on to exchange blocks. All arguments in canonical text; hex out.

    `model` is what decides KV and is not in the weights: RoPE, the window, the norm's epsilon.
    """
    return _digest(
        b"cache", base_digest.encode(), dtype.encode(), model.encode(), b"%d" % block_size, layout.encode()
    ).hex()


def root_hash(fingerprint: str, tenant: str, private_digest: str = "") -> BlockHash:
    """The parent of a prompt's first block. `private_digest` is the adapter's in private mode and empty otherwise."""
    return BlockHash(_digest(b"root", fingerprint.encode(), tenant_salt(tenant), private_digest.encode()))


def child_hash(parent: BlockHash, token_ids: Sequence[int]) -> BlockHash:
    """The name of the block of `token_ids` (a full block's) that follows `parent`."""
    return BlockHash(_digest(b"block", parent, struct.pack(f"<{len(token_ids)}I", *token_ids)))


def block_hashes(root: BlockHash, token_ids: Sequence[int], block_size: int) -> list[BlockHash]:
    """Names of the full blocks of `token_ids`, in order; a partial tail has none."""
    return list(_chain(root, token_ids, block_size))


@dataclass(frozen=True)
class BlockNames:
    """The names of a prompt's full blocks, kept so that a longer prompt's need not all be computed again."""

    root: BlockHash
    block_size: int
    packed: bytes = b""

    @property
    def hashes(self) -> list[BlockHash]:
        return [BlockHash(self.packed[i : i + _HASH_BYTES]) for i in range(0, len(self.packed), _HASH_BYTES)]

    def first(self, num_tokens: int) -> "BlockNames":
        """Those of the first `num_tokens` tokens."""
        return replace(self, packed=self.packed[: num_tokens // self.block_size * _HASH_BYTES])

    def extended(self, token_ids: Sequence[int]) -> "BlockNames":
        """The names of `token_ids`, which begins with the tokens that are named here or is a beginning of them."""
        known = self.first(len(token_ids)).packed
        parent = BlockHash(known[-_HASH_BYTES:]) if known else self.root
        start = len(known) // _HASH_BYTES * self.block_size
        return replace(self, packed=known + b"".join(_chain(parent, token_ids, self.block_size, start)))


def _chain(parent: BlockHash, token_ids: Sequence[int], block_size: int, start: int = 0) -> Iterable[BlockHash]:
    for end in range(start + block_size, len(token_ids) + 1, block_size):
        parent = child_hash(parent, token_ids[end - block_size : end])
        yield parent
