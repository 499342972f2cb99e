"""From records to token ids, as the gateway makes them: what is trained is what is served."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from icarus.errors import ConfigError, InvalidInputError
from icarus.training.model_config import read_model_config
from icarus.training.records import Record


@dataclass(frozen=True)
class Example:
    """Token ids. The answer ends with the token that ends a turn; its tokens alone carry loss."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.answer_ids)


class Renderer:
    """A model's chat template and tokenizer."""

    def __init__(self, folder: str | Path):
        """Raises ConfigError where the model has no tokenizer, or names no end-of-sequence token."""
        config = read_model_config(folder)
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"model {folder} has no tokenizer that can be read: {reason}") from None
        self._control_tokens = [
            token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special
        ]
        self.end_ids = _end_ids(Path(folder), self.tokenizer)
        self.context_length = int(getattr(config, "max_position_embeddings", 1 << 30))
        if not self.end_ids:
            raise ConfigError(f"model {folder} names no end-of-sequence token, so an answer would never end")

    def prompt_ids(self, prompt: str | Sequence[Any]) -> list[int]:
        """Ids of text as it is, or of messages with the generation prompt."""
        if isinstance(prompt, str):
            return self.tokenizer(prompt)["input_ids"]
        return self._encode(self._render(prompt, add_generation_prompt=True))

    def example(self, record: Record) -> Example:
        """Raises InvalidInputError with the record's line where the chat template objects, or rewrites an answered
        prompt, and where a message has the text of a control token, which the gateway would quote."""
        try:
            self._refuse_control_tokens(record)
            prompt_ids = self.prompt_ids(record.prompt)
            answer_ids = self._end(self._encode(self._answer_text(record)))
        except InvalidInputError as error:
            raise InvalidInputError(f"line {record.line}: {error}") from None
        return Example(tuple(prompt_ids), tuple(answer_ids))

    def decode(self, token_ids: Sequence[int]) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens=True)

    def _refuse_control_tokens(self, record: Record) -> None:
        if isinstance(record.prompt, str):
            return
        for text in [*(message["content"] for message in record.prompt), record.answer]:
            if found := next((token for token in self._control_tokens if token in text), None):
                raise InvalidInputError(
                    f"a text has the control token {found!r}, which means itself in training and nothing when served; "
                    "take it out"
                )

    def _answer_text(self, record: Record) -> str:
        if isinstance(record.prompt, str):
            return record.answer
        prompt = self._render(record.prompt, add_generation_prompt=True)
        whole = self._render([*record.prompt, {"role": "assistant", "content": record.answer}])
        if not whole.startswith(prompt):
            raise InvalidInputError(
                "the model's chat template renders an answered prompt unlike the prompt itself; "
                "give 'prompt' and 'completion' instead of messages"
            )
        return whole[len(prompt) :]

    def _end(self, ids: list[int]) -> list[int]:
        """Up to and with the last end token; one is added where the template has none."""
        last = next((index for index in range(len(ids) - 1, -1, -1) if ids[index] in self.end_ids), None)
        return [*ids, self.end_ids[0]] if last is None else ids[: last + 1]

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _render(self, messages: Sequence[Any], add_generation_prompt: bool = False) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except (jinja2.TemplateError, ValueError) as error:
            raise InvalidInputError(f"the model's chat template refuses the messages: {error}") from None


def _end_ids(folder: Path, tokenizer: Any) -> list[int]:
    """The tokenizer's first; then those of generation_config.json and config.json."""
    found = [tokenizer.eos_token_id]
    for source in (GenerationConfig, AutoConfig):
        try:
            entry = getattr(source.from_pretrained(folder), "eos_token_id", None)
        except OSError:  # not every model has both files
            continue
        found += entry if isinstance(entry, list) else [entry]
    return list(dict.fromkeys(token_id for token_id in found if token_id is not None))
