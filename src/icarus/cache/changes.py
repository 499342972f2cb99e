"""What happened to a pool's names, numbered one by one, for those who mirror them (the gateways' prefix index)."""

from dataclasses import dataclass

from icarus.types import BlockHash


@dataclass(frozen=True)
class BlockChange:
    """A block was named, or its name was dropped."""

    block_hash: BlockHash
    removed: bool


class ChangeLog:
    """Collects changes until somebody takes them. Owned by the engine thread."""

    def __init__(self) -> None:
        self._changes: list[BlockChange] = []
        self.next_sequence = 0
        """The number that the next change will get."""

    def append(self, block_hash: BlockHash, removed: bool) -> None:
        self._changes.append(BlockChange(block_hash, removed))
        self.next_sequence += 1

    def take(self) -> tuple[int, list[BlockChange]]:
        """(number of the first change, the changes since the last call)."""
        changes, self._changes = self._changes, []
        return self.next_sequence - len(changes), changes
