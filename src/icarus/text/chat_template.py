"""Chat templates: the whole conversation at once, or what new messages add to it (docs/sessions.md, "Append-only")."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from icarus.errors import ConfigError, FailedPreconditionError, InvalidInputError
from icarus.text.model_files import read_json, special_tokens


@dataclass(frozen=True)
class ChatMessage:
    role: str
    content: str


# The fixed conversation that deltas are rendered against: whatever a template puts in front of everything (BOS, a
# default system turn) goes there and is cut off again.
_USER = ChatMessage("user", "icarus-dummy-question")
_ASSISTANT = ChatMessage("assistant", "icarus-dummy-answer")


class InvalidTemplateError(ConfigError):
    """A template that cannot be used at all."""


class ChatTemplate:
    """A model's template, as text.

    `delta_problem` is None where the template can render deltas, and else says why it cannot: `split`, `closing` and
    `generation_prompt` then raise FailedPreconditionError. `system_problem` says the same of conversations that begin
    with a system message.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None):
        """Raises InvalidTemplateError where `source` is not a template."""
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise InvalidTemplateError(f"the model's chat template is not valid: {error}") from None
        self._special_tokens = dict(special_tokens or {})
        self._closing = self._generation_prompt = ""
        self.answer_gap = ""
        """White space that the template puts before an answer; the model writes it itself."""
        self.system_problem: str | None = None
        self.delta_problem = self._find_delta_problem()

    def full(self, messages: Sequence[ChatMessage], generation_prompt: bool = False) -> str:
        """The whole conversation, from its very beginning. Raises InvalidInputError where the template objects, or
        has no place for a message."""
        try:
            text = self._render(messages, generation_prompt)
        except _RENDER_ERRORS as error:
            raise InvalidInputError(f"the model's chat template refuses the messages: {error}") from None
        self._require_rendered([], messages)
        return text

    def answered(self, messages: Sequence[ChatMessage], answer: str) -> tuple[str, str]:
        """(the prompt, what comes after it where the model says `answer`, with the end of its turn).

        What the template puts before a last answer alone, as the empty thought of a model that may think, is left out.
        Raises as `full` does, and where the prompt is not how the whole begins.
        """
        prompt = self.full(messages, generation_prompt=True)
        whole = self.full([*messages, ChatMessage("assistant", answer)])
        if not whole.startswith(prompt):
            raise InvalidInputError(
                "the model's chat template renders an answered prompt unlike the prompt itself; give the prompt and "
                "its answer as text instead of messages"
            )
        return prompt, whole[len(prompt) :].removeprefix(self._before_last_answer(prompt, messages))

    def _before_last_answer(self, prompt: str, messages: Sequence[ChatMessage]) -> str:
        """What stands between the prompt and an answer that is the last message, and not where a question follows."""
        try:
            last = self._render([*messages, _ASSISTANT])
            earlier = self._render([*messages, _ASSISTANT, _USER])
        except _RENDER_ERRORS:  # a template that looks into what is said
            return ""
        before = last[len(prompt) :].partition(_ASSISTANT.content)[0]
        return before if before.strip() and not earlier.startswith(prompt + before) else ""

    def first(self, messages: Sequence[ChatMessage]) -> str:
        """The beginning of a session: as `full`, if deltas can follow it."""
        self._require_deltas()
        if self.system_problem and any(message.role == "system" for message in messages):
            raise FailedPreconditionError(
                f"the model's chat template takes no system message in sessions: {self.system_problem}; "
                "put the text into a user's message, or use the stateless call"
            )
        return self.full(messages)

    def split(self, messages: Sequence[ChatMessage]) -> tuple[str, str]:
        """(a dummy conversation, what `messages` add to it). Raises InvalidInputError where they cannot follow one."""
        self._require_deltas()
        try:
            before, added = self._split(messages)
        except _RENDER_ERRORS as error:
            raise InvalidInputError(f"the model's chat template refuses the messages: {error}") from None
        self._require_rendered(self._dummies(messages), messages)
        return before, added

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
            raise sessions_error(self.delta_problem)

    def _render(self, messages: Sequence[ChatMessage], generation_prompt: bool = False) -> str:
        return self._template.render(
            messages=[{"role": message.role, "content": message.content} for message in messages],
            add_generation_prompt=generation_prompt,
            **self._special_tokens,
        )

    def _require_rendered(self, before: Sequence[ChatMessage], messages: Sequence[ChatMessage]) -> None:
        """Raises InvalidInputError for a message that would leave no trace: of a role that the template does not know,
        or where it expects none. Marks in place of what is said show it."""
        marks = [replace(message, content=f"icarus-mark-{i}-") for i, message in enumerate(messages)]
        try:
            text = self._render([*before, *marks])
        except _RENDER_ERRORS:  # a template that looks into what is said
            return
        for message, mark in zip(messages, marks, strict=True):
            if message.content.strip() and mark.content not in text:
                raise InvalidInputError(
                    f"the model's chat template renders nothing for a message of role {message.role!r} in this place"
                )

    def _dummies(self, messages: Sequence[ChatMessage]) -> list[ChatMessage]:
        return [_USER] if messages[0].role == "assistant" else [_USER, _ASSISTANT]  # some insist on alternation

    def _split(self, messages: Sequence[ChatMessage]) -> tuple[str, str]:
        whole = self._render([*(dummies := self._dummies(messages)), *messages])
        if dummies == [_USER]:
            before = self._render(dummies)
        else:
            before = "".join(whole.partition(_ASSISTANT.content)[:2]) + self._closing
        if not whole.startswith(before):
            roles = ", ".join(message.role for message in messages)
            raise ValueError(f"messages of these roles cannot be appended to a conversation: {roles}")
        return before, whole[len(before) :]

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
        try:
            if problem := self._compare_with_full([_USER]):
                return problem
        except _RENDER_ERRORS as error:
            return f"it refuses a second question ({error})"
        self._find_system_problem()
        return None

    def _find_system_problem(self) -> None:
        try:
            self.system_problem = self._compare_with_full([ChatMessage("system", "rules"), _USER])
        except _RENDER_ERRORS:  # a model without system turns; who sends one is told then
            self.system_problem = None

    def _compare_with_full(self, start: Sequence[ChatMessage]) -> str | None:
        """Plays a conversation piece by piece and compares with rendering it whole."""
        answer, follow_up = ChatMessage("assistant", "some answer"), ChatMessage("user", "second question")
        whole = self._render([*start, answer, follow_up], generation_prompt=True)
        pieces = self._render(start) + self._generation_prompt
        if not whole.startswith(pieces):
            return "later messages change how earlier ones are rendered"
        gap = whole[len(pieces) :].partition(answer.content)[0]
        if gap.strip():
            return "an answer after its generation prompt is not what it renders for that answer"
        self.answer_gap = gap
        pieces += gap + answer.content + self._closing + self._split([follow_up])[1] + self._generation_prompt
        return None if pieces == whole else "later messages change how earlier ones are rendered"


def sessions_error(problem: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"the model's chat template does not work for sessions: {problem}; use text or token ids, or the stateless call"
    )


class _TemplateRefusal(jinja2.TemplateError):
    """The template called `raise_exception`."""


_RENDER_ERRORS = (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError)


def _environment() -> jinja2.Environment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )

    def refuse(message: str) -> None:
        raise _TemplateRefusal(message)

    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.filters["tojson"] = _to_json
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers has it, argument by argument."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`: transformers' mark of what the model wrote, for training. Here it is what it encloses."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 has it

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        return jinja2.nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def load_chat_template(folder: Path) -> ChatTemplate | None:
    """The template of a model's folder: chat_template.jinja, else tokenizer_config.json. None where there is none.

    Raises InvalidTemplateError where there is one that is not valid.
    """
    config = read_json(folder / "tokenizer_config.json")
    jinja_file = folder / "chat_template.jinja"
    try:
        source = jinja_file.read_text(encoding="utf-8") if jinja_file.is_file() else _pick(config.get("chat_template"))
    except (OSError, ValueError) as error:
        raise InvalidTemplateError(f"{jinja_file} cannot be read: {error}") from None
    return None if source is None else ChatTemplate(source, special_tokens(folder))


def _pick(entry: Any) -> str | None:
    """A template given as text, or as a list of named ones."""
    if isinstance(entry, list) and all(isinstance(item, dict) for item in entry):
        named = {item.get("name"): item.get("template") for item in entry}
        entry = named.get("default") or next(iter(named.values()), None)
    if not isinstance(entry, str | None):
        raise InvalidTemplateError(f"tokenizer_config.json: chat_template is a {type(entry).__name__}, not text")
    return entry
