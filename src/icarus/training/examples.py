"""From records to token ids, as the gateway makes them: what is trained is what is served."""

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from icarus.errors import ConfigError, InvalidInputError
from icarus.text.chat_template import ChatMessage
from icarus.text.chat_tokens import ChatTokens
from icarus.text.served_model import load_served_model
from icarus.text.tokenizer import continuation
from icarus.training.records import ChatMessages, Record


@dataclass(frozen=True)
class Example:
    """Token ids. The answer ends with the token that ends a turn; its tokens alone carry loss."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.answer_ids)


def token_digest(examples: Iterable[Example]) -> str:
    """Hex, of every token id: another tokenizer, chat template, or day that a template writes, is another digest."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(array("q", (len(example.prompt_ids), *example.prompt_ids, *example.answer_ids)).tobytes())
    return digest.hexdigest()


class Renderer:
    """A model's chat template and tokenizer."""

    def __init__(self, folder: str | Path):
        """Raises ConfigError as `load_served_model` does, and where the model names no end-of-sequence token."""
        self._model = load_served_model(Path(folder), str(folder))
        self.end_ids = self._model.eos_token_ids
        self.context_length = self._model.context_length
        if not self.end_ids:
            raise ConfigError(f"model {folder} names no end-of-sequence token, so an answer would never end")

    def prompt_ids(self, prompt: str | ChatMessages) -> tuple[int, ...]:
        """Ids of text as it is, or of messages with the generation prompt. Raises InvalidInputError where the chat
        template objects, or there is none."""
        if isinstance(prompt, str):
            return tuple(self._model.tokenizer.encode(prompt, begin=True))
        return self._chat().full(_as_served(prompt), generation_prompt=True)

    def example(self, record: Record) -> Example:
        """Raises InvalidInputError with the record's line where the chat template objects, or rewrites an answered
        prompt, and where the answer has the text of a control token."""
        try:
            if isinstance(record.prompt, str):
                prompt_ids, answer_ids = self._complete(record.prompt, record.answer)
            else:
                self._refuse_control_tokens(record.answer)
                prompt_ids, answer_ids = self._chat().answered(_as_served(record.prompt), record.answer)
        except InvalidInputError as error:
            raise InvalidInputError(f"line {record.line}: {error}") from None
        return Example(prompt_ids, self._end(answer_ids))

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._model.tokenizer.decode(token_ids)

    def _chat(self) -> ChatTokens:
        if self._model.chat is None:
            problem = self._model.template_problem or "the model has no chat template"
            raise InvalidInputError(f"{problem}; give 'prompt' and 'completion' instead of messages")
        return self._model.chat

    def _complete(self, prompt: str, completion: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokenizer sees both together, as in a history; it sees the completion alone where it would join them."""
        tokenizer = self._model.tokenizer
        prompt_ids = self.prompt_ids(prompt)
        added = continuation(prompt_ids, tuple(tokenizer.encode(prompt + completion, begin=True)))
        return prompt_ids, tuple(tokenizer.encode(completion)) if added is None else added

    def _refuse_control_tokens(self, answer: str) -> None:
        """The gateway would make ordinary tokens of it in a history, and would not show it in an answer."""
        if found := next((token for token in self._model.tokenizer.special_tokens if token in answer), None):
            raise InvalidInputError(
                f"the answer has the text of the control token {found!r}, which nothing that is served says; take it "
                "out: the end of the turn is added here"
            )

    def _end(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """Up to and with the last end token; one is added where the template has none."""
        last = next((index for index in range(len(ids) - 1, -1, -1) if ids[index] in self.end_ids), None)
        return (*ids, self.end_ids[0]) if last is None else ids[: last + 1]


def _as_served(messages: ChatMessages) -> list[ChatMessage]:
    return [ChatMessage(message["role"], message["content"]) for message in messages]
