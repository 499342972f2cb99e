"""What messages come to in token ids: the whole conversation, or only what they add to a session's history."""

import contextlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from icarus.errors import FailedPreconditionError, InvalidInputError
from icarus.text.chat_template import ChatMessage, ChatTemplate, sessions_error
from icarus.text.tokenizer import Tokenizer, continuation


class ChatTokens:
    """A chat template and its tokenizer together.

    Control tokens are the template's alone: the text of one within a message becomes ordinary tokens. `problem` says
    why the two do not work for sessions; None where they do.
    """

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer):
        self._template = template
        self._tokenizer = tokenizer
        specials = sorted(tokenizer.special_tokens, key=len, reverse=True)
        self._specials = re.compile("|".join(map(re.escape, specials))) if specials else None
        self._plain = {text: tokenizer.encode_plain(text) for text in specials}
        self._closing: tuple[int, ...] = ()
        self._generation_prompt: tuple[int, ...] = ()
        self.problem = template.delta_problem or self._find_problem()

    def full(self, messages: Sequence[ChatMessage], generation_prompt: bool = False) -> tuple[int, ...]:
        """The whole conversation. Raises InvalidInputError where the template objects."""
        quoted = self._quote(messages)
        return self._encode(self._template.full(quoted.messages, generation_prompt), quoted)

    def answered(self, messages: Sequence[ChatMessage], answer: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(the prompt, what the model adds to it that says `answer` and ends its turn). Raises InvalidInputError where
        the template objects, or renders an answered prompt unlike the prompt itself."""
        quoted = self._quote([*messages, ChatMessage("assistant", answer)])
        prompt, said = self._template.answered(quoted.messages[:-1], quoted.messages[-1].content)
        ids = self._encode(prompt, quoted)
        added = continuation(ids, self._encode(prompt + said, quoted))
        return ids, self._encode(said, quoted) if added is None else added

    def first(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        """The beginning of a session. Raises FailedPreconditionError where the template does not work for sessions."""
        self._require_sessions()
        quoted = self._quote(messages)
        return self._encode(self._template.first(quoted.messages), quoted)

    def delta(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        """What `messages` add after a turn that is closed. Raises as `first` does, and InvalidInputError."""
        self._require_sessions()
        quoted = self._quote(messages)
        before, added = self._template.split(quoted.messages)
        return self._added(before, added, quoted)

    @property
    def closing(self) -> tuple[int, ...]:
        """What ends an assistant's turn, after its content."""
        self._require_sessions()
        return self._closing

    @property
    def generation_prompt(self) -> tuple[int, ...]:
        """What opens the assistant's turn."""
        self._require_sessions()
        return self._generation_prompt

    def _require_sessions(self) -> None:
        if self.problem:
            raise sessions_error(self.problem)

    def _quote(self, messages: Sequence[ChatMessage]) -> "_Quoted":
        """Puts a place-holder, which nobody can foresee, where a message has the text of a control token."""
        texts: list[str] = []
        name = f"icarus{secrets.token_hex(8)}q"

        def hide(match: re.Match[str]) -> str:
            texts.append(match[0])
            return f"{name}{len(texts) - 1}q"

        if self._specials is None or not any(self._specials.search(message.content) for message in messages):
            return _Quoted(messages)
        hidden = [replace(message, content=self._specials.sub(hide, message.content)) for message in messages]
        return _Quoted(hidden, re.compile(f"{name}(\\d+)q"), texts)

    def _encode(self, text: str, quoted: "_Quoted") -> tuple[int, ...]:
        if quoted.place_holder is None:
            return tuple(self._tokenizer.encode(text))
        ids: list[int] = []
        for i, piece in enumerate(quoted.place_holder.split(text)):
            if i % 2:
                ids += self._plain[quoted.texts[int(piece)]]
            elif piece:
                ids += self._tokenizer.encode(piece)
        return tuple(ids)

    def _added(self, before: str, text: str, quoted: "_Quoted | None" = None) -> tuple[int, ...]:
        """The tokens that `text` adds to `before`: the tokenizer sees them together, as in the whole conversation."""
        first, both = tuple(self._tokenizer.encode(before)), self._encode(before + text, quoted or _Quoted(()))
        added = continuation(first, both)
        if added is None:
            raise _JoinedError(f"the tokenizer joins {text[:20]!r} with the text before it")
        return added

    def _find_problem(self) -> str | None:
        """Plays conversations piece by piece and compares with the tokens of the whole."""
        starts = [[ChatMessage("user", "first question")]]
        if not self._template.system_problem:
            starts.append([ChatMessage("system", "rules"), *starts[0]])
        try:
            self._measure(starts[0])
            for start in starts:
                with contextlib.suppress(InvalidInputError):  # a template without system turns
                    if self._pieces(start) != self._whole(start):
                        return "its pieces do not come to the tokens of the whole conversation"
        except _JoinedError as error:
            return error.reason
        return None

    def _measure(self, start: Sequence[ChatMessage]) -> None:
        template = self._template
        asked = template.full(start)
        self._generation_prompt = self._added(asked, template.generation_prompt)
        answered = asked + template.generation_prompt + template.answer_gap + _ANSWER.content
        self._closing = self._added(answered, template.closing)

    def _pieces(self, start: Sequence[ChatMessage]) -> tuple[int, ...]:
        prompted = self._template.full(start, generation_prompt=True)
        answer = self._added(prompted, self._template.answer_gap + _ANSWER.content)
        before, added = self._template.split([_FOLLOW_UP])
        asked = self._encode(self._template.full(start), _Quoted(()))
        end = self._added(before, added) + self._generation_prompt
        return asked + self._generation_prompt + answer + self._closing + end

    def _whole(self, start: Sequence[ChatMessage]) -> tuple[int, ...]:
        return self.full([*start, _ANSWER, _FOLLOW_UP], generation_prompt=True)


_ANSWER, _FOLLOW_UP = ChatMessage("assistant", "some answer"), ChatMessage("user", "second question")


class _JoinedError(FailedPreconditionError):
    """A border between pieces that the tokenizer does not keep."""

    def __init__(self, reason: str):
        super().__init__(str(sessions_error(reason)))
        self.reason = reason


@dataclass(frozen=True)
class _Quoted:
    """Messages whose control tokens are hidden behind place-holders, and the texts that were hidden."""

    messages: Sequence[ChatMessage]
    place_holder: re.Pattern[str] | None = None
    texts: Sequence[str] = ()
