"""Chat templates: the whole conversation at once, or only what new messages add to it (DESIGN section 5)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox

from icarus.errors import ConfigError, FailedPreconditionError, InvalidInputError
from icarus_gateway.model_files import read_json, special_tokens


@dataclass(frozen=True)
class ChatMessage:
    role: str
    content: str


# The fixed conversation that deltas are rendered against: whatever a template puts in front of everything (BOS, a
# default system turn) goes there and is cut off again.
_USER = ChatMessage("user", "icarus-dummy-question")
_ASSISTANT = ChatMessage("assistant", "icarus-dummy-answer")


class ChatTemplate:
    """A model's template.

    `delta_problem` is None where the template can render deltas, and else says why it cannot; `delta`,
    `closing` and `generation_prompt` then raise FailedPreconditionError.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None):
        """Raises ConfigError where `source` is not a template."""
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise ConfigError(f"the model's chat template is not valid: {error}") from None
        self._special_tokens = dict(special_tokens or {})
        self._closing = self._generation_prompt = ""
        self.delta_problem = self._find_delta_problem()

    def full(self, messages: Sequence[ChatMessage], generation_prompt: bool = False) -> str:
        """The whole conversation, from its very beginning. Raises InvalidInputError where the template objects."""
        try:
            return self._render(messages, generation_prompt)
        except _RENDER_ERRORS as error:
            raise InvalidInputError(f"the model's chat template refuses the messages: {error}") from None

    def delta(self, messages: Sequence[ChatMessage]) -> str:
        """What `messages` add to a conversation whose last turn is closed."""
        self._require_deltas()
        before = _before(messages)
        prefix, whole = self.full(before), self.full([*before, *messages])
        if not whole.startswith(prefix):
            roles = ", ".join(message.role for message in messages)
            raise InvalidInputError(f"the model's chat template cannot append messages of these roles: {roles}")
        return whole[len(prefix) :]

    @property
    def closing(self) -> str:
        """What ends an assistant's turn, after its content."""
        self._require_deltas()
        return self._closing

    @property
    def generation_prompt(self) -> str:
        """What opens the assistant's turn."""
        self._require_deltas()
        return self._generation_prompt

    def _require_deltas(self) -> None:
        if self.delta_problem:
            raise FailedPreconditionError(
                f"the model's chat template does not work for sessions: {self.delta_problem}; "
                "use text or token ids, or the stateless call"
            )

    def _render(self, messages: Sequence[ChatMessage], generation_prompt: bool = False) -> str:
        return self._template.render(
            messages=[{"role": message.role, "content": message.content} for message in messages],
            add_generation_prompt=generation_prompt,
            **self._special_tokens,
        )

    def _find_delta_problem(self) -> str | None:
        try:
            asked, answered = self._render([_USER]), self._render([_USER, _ASSISTANT])
            prompted = self._render([_USER], generation_prompt=True)
        except _RENDER_ERRORS as error:
            return f"it refuses a plain question and answer ({error})"
        if not prompted.startswith(asked):
            return "its generation prompt changes what comes before"
        if _ASSISTANT.content not in answered:
            return "it drops an assistant's content"
        self._generation_prompt = prompted[len(asked) :]
        self._closing = answered.rpartition(_ASSISTANT.content)[2]
        return self._compare_with_full()

    def _compare_with_full(self) -> str | None:
        """Plays conversations piece by piece and compares with rendering them whole."""
        try:
            if problem := self._compare_from([ChatMessage("user", "first question")]):
                return problem
        except _RENDER_ERRORS as error:
            return f"it refuses a second question ({error})"
        try:
            return self._compare_from([ChatMessage("system", "rules"), _USER])
        except _RENDER_ERRORS:  # a model without system turns; who sends one is told then
            return None

    def _compare_from(self, start: Sequence[ChatMessage]) -> str | None:
        answer, follow_up = ChatMessage("assistant", "some answer"), ChatMessage("user", "second question")
        pieces = self._render(start) + self._generation_prompt + answer.content + self._closing
        if pieces != self._render([*start, answer]):
            return "an answer after its generation prompt is not what it renders for that answer"
        pieces += self._suffix([follow_up]) + self._generation_prompt
        if pieces != self._render([*start, answer, follow_up], generation_prompt=True):
            return "later messages change how earlier ones are rendered"
        return None

    def _suffix(self, messages: Sequence[ChatMessage]) -> str:
        before = _before(messages)
        return self._render([*before, *messages])[len(self._render(before)) :]


def _before(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """A dummy beginning after which `messages` can follow in templates that insist on alternation."""
    return [_USER] if messages and messages[0].role == "assistant" else [_USER, _ASSISTANT]


class _TemplateRefusal(jinja2.TemplateError):
    """The template called `raise_exception`."""


_RENDER_ERRORS = (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError)


def _environment() -> jinja2.Environment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )

    def refuse(message: str) -> None:
        raise _TemplateRefusal(message)

    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    return environment


def load_chat_template(folder: Path) -> ChatTemplate | None:
    """The template of a model's folder: chat_template.jinja, else tokenizer_config.json. None where there is none."""
    config = read_json(folder / "tokenizer_config.json")
    jinja_file = folder / "chat_template.jinja"
    source = jinja_file.read_text(encoding="utf-8") if jinja_file.is_file() else _pick(config.get("chat_template"))
    return None if source is None else ChatTemplate(source, special_tokens(folder))


def _pick(entry: Any) -> str | None:
    """A template given as text, or as a list of named ones."""
    if isinstance(entry, list):
        named = {item["name"]: item["template"] for item in entry}
        return named.get("default") or next(iter(named.values()), None)
    return entry
