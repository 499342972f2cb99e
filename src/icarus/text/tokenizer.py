"""Text to token ids and back."""

import hashlib
import json
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import AddedToken
from tokenizers import Tokenizer as RawTokenizer

from icarus.errors import ConfigError
from icarus.text.model_files import control_tokens

_UNFINISHED = "\ufffd"
_MAX_HELD_TOKENS = 8  # no character takes more; what is held longer is not UTF-8
_MAX_BYTES = 4  # of a character
_CONTEXT_TOKENS = 6
_MAX_CONTEXT_TOKENS = 32


class Tokenizer:
    """A Hugging Face `tokenizer.json`."""

    def __init__(self, raw: RawTokenizer):
        self._raw = raw

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer":
        """Truncation and padding that were saved do not count; what tokenizer_config.json names as special tokens are.

        Raises ConfigError where the folder has no readable tokenizer.json.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ConfigError(
                f"{folder} has no tokenizer.json, the fast tokenizer; transformers' `save_pretrained` writes it"
            )
        try:
            raw = RawTokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise ConfigError(f"{path} cannot be read: {error}") from None
        raw.no_truncation()
        raw.no_padding()
        _make_special(raw, control_tokens(folder))
        return cls(raw)

    def encode(self, text: str, begin: bool = False) -> list[int]:
        """Token ids of `text`. `begin` adds what the tokenizer puts around a fresh text (BOS, for some models)."""
        (encoding,) = self._raw.encode_batch([text], add_special_tokens=begin)  # unlike `encode` it lets go of the GIL
        return encoding.ids

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of `text`, none of them special: what it would say if it were not a control token."""
        self._raw.encode_special_tokens = True
        try:
            return self._raw.encode(text, add_special_tokens=False).ids
        finally:
            self._raw.encode_special_tokens = False

    @property
    def special_tokens(self) -> list[str]:
        """The texts of the control tokens."""
        return [token.content for token in self._raw.get_added_tokens_decoder().values() if token.special]

    @cached_property
    def vocabulary_digest(self) -> str:
        """Of what every token id stands for: ids of one tokenizer mean the same under another of this digest."""
        return hashlib.sha256(json.dumps(sorted(self._raw.get_vocab().items())).encode()).hexdigest()

    @cached_property
    def longest_token(self) -> int:
        """Characters of the vocabulary's longest entry: a text has at least `len(text) / longest_token` tokens."""
        return max(map(len, self._raw.get_vocab()))

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text without special tokens; ids that the tokenizer does not know come to nothing."""
        return self._raw.decode(list(token_ids), skip_special_tokens=True)

    def id_of(self, token: str) -> int | None:
        return self._raw.token_to_id(token)

    def token_of(self, token_id: int) -> str | None:
        return self._raw.id_to_token(token_id)


def continuation(before: tuple[int, ...], both: tuple[int, ...]) -> tuple[int, ...] | None:
    """What the ids of two texts together add to those of the first; None where the tokenizer joined them."""
    return both[len(before) :] if both[: len(before)] == before else None


def _make_special(raw: RawTokenizer, texts: Collection[str]) -> None:
    """Makes control tokens of those that have an id."""
    added = {token.content: token for token in raw.get_added_tokens_decoder().values()}
    for text in sorted(texts):
        if raw.token_to_id(text) is not None:
            token = added.get(text, AddedToken(text, normalized=False))
            token.special = True
            raw.add_special_tokens([token])


class Detokenizer:
    """Turns a stream of tokens into text, piece by piece; holds back a character until all its bytes are there.

    The tokens of the last piece, at first those before the stream, give the context in which the next one is read
    (its leading space, for one). A context holds whole characters: a tokenizer with byte fallback spoils the whole run
    of bytes otherwise. A character that the stream completes comes whole.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()):
        self._tokenizer = tokenizer
        self._context, self._held = _whole_characters(tokenizer, before)
        self._context_text = tokenizer.decode(self._context)

    def push(self, token_id: int) -> str:
        """The text that this token makes certain; may be empty."""
        self._held.append(token_id)
        text = self._tokenizer.decode(self._context + self._held)
        if text.endswith(_UNFINISHED) and len(self._held) < _MAX_HELD_TOKENS:
            return ""
        return self._release(text)

    def flush(self) -> str:
        """What is held back, with U+FFFD in place of an unfinished character."""
        return self._release(self._tokenizer.decode(self._context + self._held)) if self._held else ""

    def _release(self, text: str) -> str:
        spoiled = not text.startswith(self._context_text)
        new = self._tokenizer.decode(self._held) if spoiled else text[len(self._context_text) :]
        self._context = self._held if new else (self._context + self._held)[:_MAX_CONTEXT_TOKENS]
        self._context_text = self._tokenizer.decode(self._context)
        self._held = []
        return new


def _whole_characters(tokenizer: Tokenizer, token_ids: Sequence[int]) -> tuple[list[int], list[int]]:
    """(the last tokens that are whole characters together, those of an unfinished character behind them)"""

    def is_whole(ids: Sequence[int]) -> bool:
        return _UNFINISHED not in tokenizer.decode(ids)

    for size in range(_CONTEXT_TOKENS, _CONTEXT_TOKENS + _MAX_BYTES):
        last = list(token_ids[-size:])
        if any(is_whole(last[: n + 1]) for n in range(_MAX_BYTES)):  # it begins with one
            end = next((end for end in range(len(last), 0, -1) if is_whole(last[:end])), 0)
            return (last[:end], last[end:]) if len(last) - end < _MAX_BYTES else (last, [])
    return list(token_ids[-_CONTEXT_TOKENS:]), []
