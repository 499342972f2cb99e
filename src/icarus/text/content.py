"""What callers may hand to a model, checked and as plain values."""

from dataclasses import dataclass

from icarus.text.chat_template import ChatMessage


@dataclass(frozen=True)
class Messages:
    """For the chat template."""

    messages: tuple[ChatMessage, ...]


@dataclass(frozen=True)
class Text:
    """Tokenised without a template."""

    text: str


@dataclass(frozen=True)
class Tokens:
    """Taken as they are."""

    token_ids: tuple[int, ...]


Content = Messages | Text | Tokens
