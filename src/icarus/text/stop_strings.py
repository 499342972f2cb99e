"""Where a turn's text ends: stop strings, matched over token borders."""

from collections.abc import Sequence
from functools import lru_cache

from icarus.text.tokenizer import Detokenizer


class StopStrings:
    """Passes text on, except what may be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str]):
        self._stops = [_StopString(stop) for stop in stops]
        self._held = ""
        self.matched = False

    def push(self, text: str, may_match: bool = True) -> str:
        """The text that is certain. Once a stop string has appeared, `matched` is set and nothing more comes.

        A stop string that ends within text which may not match is passed on like any other text.
        """
        if self.matched:
            return ""
        num_held, new, text = len(self._held), text, self._held + text
        found = [stop.push(new, may_match) for stop in self._stops]
        starts = [num_held + start for start in found if start is not None]
        if starts:
            self.matched, self._held = True, ""
            return text[: min(starts)]
        keep = max((stop.num_matched for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back: no stop string after all."""
        held, self._held = self._held, ""
        return held


class _StopString:
    """One stop string and how far the text so far matches it: a step a character, however long it is (Knuth, Morris
    and Pratt)."""

    def __init__(self, stop: str):
        self._stop = stop
        self._shorter = _borders(stop)
        self.num_matched = 0
        """Characters at the text's end that the stop string begins with; fewer than it has."""

    def push(self, text: str, may_match: bool) -> int | None:
        """Where the stop string begins that `text` completes first, from the beginning of `text` (so perhaps negative).
        None where it completes none."""
        for position, character in enumerate(text):
            self.num_matched = self._step(character)
            if self.num_matched == len(self._stop):
                if may_match:
                    return position + 1 - len(self._stop)
                self.num_matched = self._shorter[-1]
        return None

    def _step(self, character: str) -> int:
        matched = self.num_matched
        while matched and self._stop[matched] != character:
            matched = self._shorter[matched - 1]
        return matched + (self._stop[matched] == character)


@lru_cache(maxsize=1024)
def _borders(stop: str) -> tuple[int, ...]:
    """For each beginning of `stop`: the longest shorter one that it also ends with, in characters."""
    borders = [0] * len(stop)
    for end in range(1, len(stop)):
        border = borders[end - 1]
        while border and stop[border] != stop[end]:
            border = borders[border - 1]
        borders[end] = border + (stop[border] == stop[end])
    return tuple(borders)


class OutputText:
    """The text of one turn as its tokens come in. No stop string matches within the first `min_tokens` tokens."""

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str], min_tokens: int = 0):
        self._detokenizer = detokenizer
        self._stops = StopStrings(stops)
        self._min_tokens = min_tokens
        self._num_tokens = 0

    @property
    def stopped(self) -> bool:
        return self._stops.matched

    def push(self, token_ids: Sequence[int]) -> tuple[list[int], str]:
        """(the ids that belong to the turn: through the one that completes a stop string; the text certain by now)."""
        taken, text = [], ""
        for token_id in token_ids:
            if self.stopped:
                break
            taken.append(token_id)
            self._num_tokens += 1
            text += self._stops.push(self._detokenizer.push(token_id), self._may_stop)
        return taken, text

    def flush(self) -> str:
        """The rest of the text, at the end of the turn."""
        return self._stops.push(self._detokenizer.flush(), self._may_stop) + self._stops.flush()

    @property
    def _may_stop(self) -> bool:
        return self._num_tokens > self._min_tokens
