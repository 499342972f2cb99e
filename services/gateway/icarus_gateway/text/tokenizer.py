"""Text to token ids and back."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer as RawTokenizer

from icarus.errors import ConfigError

_UNFINISHED = "\ufffd"
_MAX_HELD_TOKENS = 8  # no character takes more; what is held longer is not UTF-8
_CONTEXT_TOKENS = 6


class Tokenizer:
    """A Hugging Face `tokenizer.json`."""

    def __init__(self, raw: RawTokenizer):
        self._raw = raw

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer":
        """Raises ConfigError where the folder has no readable tokenizer.json."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ConfigError(f"{folder} has no tokenizer.json; the gateway needs the model's fast tokenizer")
        try:
            return cls(RawTokenizer.from_file(str(path)))
        except Exception as error:  # the library raises plain Exception
            raise ConfigError(f"{path} cannot be read: {error}") from None

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
    def longest_token(self) -> int:
        """Characters of the vocabulary's longest entry: a text has at least `len(text) / longest_token` tokens."""
        return max(map(len, self._raw.get_vocab()))

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text without special tokens; ids that the tokenizer does not know come to nothing."""
        return self._raw.decode(list(token_ids), skip_special_tokens=True)

    def id_of(self, token: str) -> int | None:
        return self._raw.token_to_id(token)


class Detokenizer:
    """Turns a stream of tokens into text, piece by piece; holds back a character until all its bytes are there.

    A few tokens before the stream give the context in which the first one is read (its leading space, for one).
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()):
        self._tokenizer = tokenizer
        self._context = list(before[-_CONTEXT_TOKENS:])
        self._context_text = tokenizer.decode(self._context)
        self._held: list[int] = []

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
        new = text[len(self._context_text) :]
        self._context = (self._context + self._held)[-_CONTEXT_TOKENS:]
        self._context_text = self._tokenizer.decode(self._context)
        self._held = []
        return new
