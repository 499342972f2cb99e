"""Who owns which block. No tensors: `kv.py` holds the bytes.

A block is in exactly one state:

    free         holds nothing
    used         referenced by requests or leases; may have a name
    cached       named, unreferenced: found by its name, evicted least recently used first
    quarantined  a posted read may still write to it; nobody owns it until the read settles
"""

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from icarus.cache.changes import ChangeLog
from icarus.errors import IntegrityError
from icarus.types import BlockHash, BlockId, PoolCounts


@dataclass
class _Block:
    num_references: int = 0
    block_hash: BlockHash | None = None
    writer: str = ""
    users: set[str] = field(default_factory=set)
    """Specialists whose turns in this pool wrote or read the named block."""


class BlockPool:
    """Block ownership and names of one worker's pool. Owned by the engine thread."""

    def __init__(self, num_blocks: int):
        self._blocks = [_Block() for _ in range(num_blocks)]
        self._free = deque(BlockId(i) for i in range(num_blocks))
        self._cached: dict[BlockId, None] = {}
        """Least recently used first: dicts keep insertion order."""
        self._quarantined: set[BlockId] = set()
        self._num_used = 0
        self._by_hash: dict[BlockHash, BlockId] = {}
        self.changes = ChangeLog()
        self.evictions = 0
        self.num_extra_copies = 0
        """Blocks that caches of each specialist's own would hold beside these: one for each user but the first."""

    @property
    def num_blocks(self) -> int:
        return len(self._blocks)

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can give: free and evictable ones."""
        return len(self._free) + len(self._cached)

    @property
    def num_quarantined(self) -> int:
        return len(self._quarantined)

    def match(self, block_hashes: Iterable[BlockHash]) -> list[BlockId]:
        """The blocks of the longest prefix of `block_hashes` that is held. Takes no reference."""
        matched = []
        for block_hash in block_hashes:
            block_id = self._by_hash.get(block_hash)
            if block_id is None:
                break
            matched.append(block_id)
        return matched

    def writer(self, block_id: BlockId, otherwise: str = "") -> str:
        """The specialist whose turn first completed a named block ("" for the base); `otherwise` for a nameless one."""
        block = self._blocks[block_id]
        return otherwise if block.block_hash is None else block.writer

    def note_user(self, block_ids: Iterable[BlockId], specialist: str) -> None:
        """A turn of this specialist wrote or read these blocks; the nameless ones among them are its own anyway."""
        for block_id in block_ids:
            block = self._blocks[block_id]
            if block.block_hash is not None and specialist not in block.users:
                self.num_extra_copies += bool(block.users)
                block.users.add(specialist)

    def named(self) -> list[BlockHash]:
        """Every name that is held."""
        return list(self._by_hash)

    def reference(self, block_ids: Iterable[BlockId]) -> None:
        """Adds a reference to each block; a cached one becomes used."""
        for block_id in block_ids:
            self._cached.pop(block_id, None)
            block = self._blocks[block_id]
            self._num_used += block.num_references == 0
            block.num_references += 1

    def allocate(self, count: int) -> list[BlockId] | None:
        """`count` nameless blocks with one reference each, evicting as needed; None if there are not that many."""
        if count > self.num_available:
            return None
        taken = [self._take_free() for _ in range(count)]
        self.reference(taken)
        return taken

    def release(self, block_ids: Sequence[BlockId]) -> None:
        """Drops a reference of each block of a chain, last block first, so that a chain is evicted from its end."""
        for block_id in reversed(block_ids):
            block = self._blocks[block_id]
            block.num_references -= 1
            if block.num_references == 0:
                self._rest(block_id, block)

    def name(self, block_id: BlockId, block_hash: BlockHash, writer: str) -> None:
        """Names a used block whose KV is complete. Where the name is taken already, the block stays nameless."""
        if block_hash in self._by_hash:
            return
        block = self._blocks[block_id]
        block.block_hash, block.writer = block_hash, writer
        self._by_hash[block_hash] = block_id
        self.changes.append(block_hash, removed=False)

    def quarantine(self, block_ids: Iterable[BlockId]) -> None:
        """Takes used, nameless blocks with one reference away from their owner until `settle`. Raises IntegrityError
        for others."""
        for block_id in block_ids:
            block = self._blocks[block_id]
            if block.num_references != 1 or block.block_hash is not None:
                raise IntegrityError(f"block {block_id} cannot be quarantined: its owner does not have it alone")
            block.num_references = 0
            self._num_used -= 1
            self._quarantined.add(block_id)

    def settle(self, block_ids: Iterable[BlockId]) -> None:
        """The read that could write to these quarantined blocks is over: they are free again."""
        for block_id in block_ids:
            self._quarantined.remove(block_id)
            self._free.append(block_id)

    def counts(self) -> PoolCounts:
        return PoolCounts(self.num_blocks, len(self._free), len(self._cached), self._num_used, self.num_quarantined)

    def check(self, owned: Counter[BlockId]) -> PoolCounts:
        """Raises IntegrityError unless the states add up and every reference is in `owned` (references by block)."""
        counts = self.counts()
        used = sum(1 for block in self._blocks if block.num_references > 0)
        if counts.used != used:
            raise IntegrityError(f"{used} blocks have references, {counts.used} are counted")
        if counts.free + counts.cached + counts.used + counts.quarantined != counts.total:
            raise IntegrityError(f"block states do not add up to the pool: {counts}")
        for block_id, block in enumerate(self._blocks):
            held, known = block.num_references, owned[BlockId(block_id)]
            if held != known:
                raise IntegrityError(f"block {block_id} has {held} references, its owners know of {known}")
        return counts

    def _take_free(self) -> BlockId:
        if self._free:
            return self._free.popleft()
        block_id = next(iter(self._cached))
        del self._cached[block_id]
        self._drop_name(block_id)
        self.evictions += 1
        return block_id

    def _rest(self, block_id: BlockId, block: _Block) -> None:
        self._num_used -= 1
        if block.block_hash is None:
            self._free.append(block_id)
        else:
            self._cached[block_id] = None

    def _drop_name(self, block_id: BlockId) -> None:
        block = self._blocks[block_id]
        assert block.block_hash is not None
        del self._by_hash[block.block_hash]
        self.changes.append(block.block_hash, removed=True)
        block.block_hash, block.writer = None, ""
        self.num_extra_copies -= max(len(block.users) - 1, 0)
        block.users.clear()
