"""Where a turn's text ends: stop strings, matched over token borders."""

from collections.abc import Sequence

from icarus_gateway.tokenizer import Detokenizer


class StopStrings:
    """Passes text on, except what may be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str]):
        self._stops = tuple(stops)
        self._held = ""
        self.matched = False

    def push(self, text: str) -> str:
        """The text that is certain. Once a stop string has appeared, `matched` is set and nothing more comes."""
        if self.matched:
            return ""
        text = self._held + text
        starts = [start for stop in self._stops if (start := text.find(stop)) >= 0]
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
    """The text of one turn as its tokens come in."""

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str]):
        self._detokenizer = detokenizer
        self._stops = StopStrings(stops)

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
            text += self._stops.push(self._detokenizer.push(token_id))
        return taken, text

    def flush(self) -> str:
        """The rest of the text, at the end of the turn."""
        return self._stops.push(self._detokenizer.flush()) + self._stops.flush()
