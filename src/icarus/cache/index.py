"""Which worker holds which block, as far as the workers' reports tell.

A worker numbers its changes one by one; the index follows each worker by number, so it knows when it missed some. What
it says may be stale: the owner of a block has the last word.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice

from icarus.cache.changes import BlockChange
from icarus.types import BlockHash, WorkerId

_CHANGES_A_STEP = 2000  # some 10 ms


@dataclass
class _Mirror:
    """What is known of one worker's pool."""

    instance_id: str
    next_sequence: int = 0
    hashes: set[BlockHash] = field(default_factory=set)


class PrefixIndex:
    """Maps block hashes to the workers that hold them. Owned by one thread."""

    def __init__(self) -> None:
        self._mirrors: dict[WorkerId, _Mirror] = {}
        self._holders: dict[BlockHash, set[WorkerId]] = {}

    def apply(
        self, worker: WorkerId, instance_id: str, first_sequence: int, changes: Iterable[BlockChange]
    ) -> Iterator[None]:
        """Takes in changes numbered from `first_sequence`, with a pause every so many; `sequence` is then the next
        number that it expects.

        After a gap nothing changes. Changes seen before are skipped. A new instance begins empty at 0. It ends early
        where the worker is dropped meanwhile, and is to be run to its end before other reports of the worker.
        """
        mirror = self._mirror(worker, instance_id)
        num_seen = mirror.next_sequence - first_sequence
        if num_seen < 0:
            return
        for number, change in enumerate(islice(changes, num_seen, None), 1):
            if change.removed:
                self._remove(worker, mirror, change.block_hash)
            else:
                self._add(worker, mirror, change.block_hash)
            mirror.next_sequence += 1
            if number % _CHANGES_A_STEP == 0:
                yield
                if self._mirrors.get(worker) is not mirror:
                    return

    def replace(self, worker: WorkerId, instance_id: str, sequence: int, hashes: Iterable[BlockHash]) -> Iterator[None]:
        """Takes in a snapshot, with pauses as `apply` has them: exactly `hashes` after the changes before `sequence`.

        A snapshot older than what is known changes nothing.
        """
        mirror = self._mirror(worker, instance_id)
        if sequence < mirror.next_sequence:
            return
        snapshot = set(hashes)
        gone = ((self._remove, block_hash) for block_hash in mirror.hashes - snapshot)
        new = ((self._add, block_hash) for block_hash in snapshot - mirror.hashes)
        for number, (change, block_hash) in enumerate(chain(gone, new), 1):
            change(worker, mirror, block_hash)
            if number % _CHANGES_A_STEP == 0:
                yield
                if self._mirrors.get(worker) is not mirror:
                    return
        mirror.next_sequence = sequence

    def drop(self, worker: WorkerId) -> None:
        """Forgets a worker; nothing if it is not known."""
        mirror = self._mirrors.pop(worker, None)
        if mirror is not None:
            for block_hash in tuple(mirror.hashes):
                self._remove(worker, mirror, block_hash)

    def match(self, hashes: Sequence[BlockHash]) -> dict[WorkerId, int]:
        """For each worker that holds the first block, how many leading blocks it holds. O(blocks x such workers)."""
        matched: dict[WorkerId, int] = {}
        holding: set[WorkerId] | None = None
        for position, block_hash in enumerate(hashes):
            holders = self._holders.get(block_hash, set())
            still = holders if holding is None else holding & holders
            matched.update(dict.fromkeys((holding or set()) - still, position))
            holding = still
            if not holding:
                return matched
        matched.update(dict.fromkeys(holding or (), len(hashes)))
        return matched

    def sequence(self, worker: WorkerId) -> int:
        """The next change number expected of a worker; 0 for an unknown one."""
        mirror = self._mirrors.get(worker)
        return mirror.next_sequence if mirror else 0

    @property
    def size(self) -> int:
        """Different blocks that some worker is thought to hold."""
        return len(self._holders)

    def num_blocks(self, worker: WorkerId) -> int:
        """Named blocks that the worker is thought to hold."""
        mirror = self._mirrors.get(worker)
        return len(mirror.hashes) if mirror else 0

    def _mirror(self, worker: WorkerId, instance_id: str) -> _Mirror:
        mirror = self._mirrors.get(worker)
        if mirror is None or mirror.instance_id != instance_id:
            self.drop(worker)
            mirror = self._mirrors[worker] = _Mirror(instance_id)
        return mirror

    def _add(self, worker: WorkerId, mirror: _Mirror, block_hash: BlockHash) -> None:
        mirror.hashes.add(block_hash)
        self._holders.setdefault(block_hash, set()).add(worker)

    def _remove(self, worker: WorkerId, mirror: _Mirror, block_hash: BlockHash) -> None:
        mirror.hashes.discard(block_hash)
        holders = self._holders.get(block_hash)
        if holders is not None:
            holders.discard(worker)
            if not holders:
                del self._holders[block_hash]
