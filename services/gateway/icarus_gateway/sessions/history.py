"""A session's truth: token ids, append-only, and what is known of where in a conversation they end."""

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from icarus.cache.hashing import BlockNames
from icarus.errors import InvalidInputError
from icarus_gateway.turns.events import BlockMark


@dataclass(frozen=True)
class Place:
    """A position in a history, and what stands before it."""

    num_tokens: int = 0
    num_turns: int = 0
    """Turns that finished."""
    after_messages: bool = False
    """The last thing appended was messages: an answer begins with the generation prompt."""
    answer_open: bool = False
    """The assistant's turn was opened and never closed."""


@dataclass(frozen=True)
class History:
    """Never changed in place: a turn builds the next one and it is committed or forgotten."""

    packed: bytes = b""
    """The token ids, four bytes each: tens of thousands of histories are kept."""
    places: tuple[Place, ...] = (Place(),)
    """Where each piece ended; the first is the beginning, the last the end."""
    mark: BlockMark | None = None
    """Of the last turn."""
    names: BlockNames | None = None
    """Of as many of its blocks as the last turn named."""

    @classmethod
    def of_pieces(cls, pieces: Iterable[tuple[Place, bytes]]) -> "History":
        """What `pieces` gave, put together again."""
        found = list(pieces)
        return cls(b"".join(packed for _, packed in found), (Place(), *(place for place, _ in found)))

    def pieces(self, first: int = 1) -> Iterator[tuple[Place, bytes]]:
        """(where it ended, its tokens as in `packed`) for each piece from number `first` on; the first one is 1."""
        for before, end in zip(self.places[first - 1 :], self.places[first:], strict=False):
            yield end, self.packed[before.num_tokens * _TOKEN_BYTES : end.num_tokens * _TOKEN_BYTES]

    @staticmethod
    def num_tokens_in(packed: bytes) -> int:
        return len(packed) // _TOKEN_BYTES

    @property
    def token_ids(self) -> tuple[int, ...]:
        return _unpack(self.packed)

    @property
    def num_tokens(self) -> int:
        return self.end.num_tokens

    @property
    def end(self) -> Place:
        return self.places[-1]

    def last(self, num_tokens: int) -> tuple[int, ...]:
        """Its last tokens: `num_tokens` of them, or all."""
        return _unpack(self.packed[-num_tokens * _TOKEN_BYTES :]) if num_tokens else ()

    def starts_with(self, other: "History") -> bool:
        """Whether it has the other's tokens at its beginning."""
        return self.packed.startswith(other.packed)

    def extended(
        self,
        token_ids: Sequence[int],
        *,
        after_messages: bool = False,
        answer_open: bool | None = None,
    ) -> "History":
        """With one more piece. An answer that is open stays open unless `answer_open` says otherwise."""
        end = Place(
            self.num_tokens + len(token_ids),
            self.end.num_turns,
            after_messages,
            self.end.answer_open if answer_open is None else answer_open,
        )
        return replace(self, packed=self.packed + array("I", token_ids).tobytes(), places=(*self.places, end))

    def answered(
        self, token_ids: Sequence[int], mark: BlockMark | None = None, names: BlockNames | None = None
    ) -> "History":
        """With a turn's output, which is a piece of its own, and what is known of the turn's blocks."""
        longer = self.extended(token_ids)
        end = replace(longer.end, num_turns=longer.end.num_turns + 1)
        return replace(longer, places=(*self.places, end), mark=mark, names=names)

    def first(self, num_tokens: int) -> "History":
        """Its first `num_tokens` tokens. Cut within a piece, an answer on either side of the cut counts as open.

        Raises InvalidInputError where it has not that many.
        """
        if not 0 <= num_tokens <= self.num_tokens:
            raise InvalidInputError(f"num_tokens is {num_tokens}; the session has {self.num_tokens} tokens")
        if num_tokens == self.num_tokens:
            return self
        index = bisect_left(self.places, num_tokens, key=lambda place: place.num_tokens)
        if self.places[index].num_tokens == num_tokens:
            places = self.places[: index + 1]
        else:
            before, after = self.places[index - 1], self.places[index]
            cut = Place(num_tokens, before.num_turns, answer_open=before.answer_open or after.answer_open)
            places = (*self.places[:index], cut)
        names = self.names.first(num_tokens) if self.names else None
        return replace(self, packed=self.packed[: num_tokens * _TOKEN_BYTES], places=places, names=names)


_TOKEN_BYTES = array("I").itemsize


def _unpack(packed: bytes) -> tuple[int, ...]:
    return tuple(array("I", packed))
