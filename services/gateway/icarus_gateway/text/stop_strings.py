"""Where a turn's text ends: stop strings, matched over token borders."""

from collections.abc import Sequence

from icarus_gateway.text.tokenizer import Detokenizer


class StopStrings:
    """Passes text on, except what may be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str]):
        self._stops = tuple(stops)
        self._held = ""
        self.matched = False

    def push(self, text: str, may_match: bool = True) -> str:
        """The text that is certain. Once a stop string has appeared, `matched` is set and nothing more comes.

        A stop string that ends within text which may not match is passed on like any other text.
        """
        if self.matched:
            return ""
        num_held, text = len(self._held), self._held + text
        found = (text.find(stop, max(0, num_held - len(stop) + 1)) for stop in self._stops if may_match)
        starts = [start for start in found if start >= 0]
        if starts:
            self.matched, self._held = True, ""
            return text[: min(starts)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back: no stop string after all."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with; shorter than `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


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
