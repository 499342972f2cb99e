"""From content to token ids: what a history grows by."""

from dataclasses import replace

from icarus.errors import FailedPreconditionError
from icarus_gateway.chat_template import ChatTemplate
from icarus_gateway.content import Content, Messages, Text
from icarus_gateway.served_model import ServedModel
from icarus_gateway.sessions import History


def stateless_prompt(model: ServedModel, content: Content) -> tuple[int, ...]:
    """The prompt of a call without a session; messages end with the generation prompt."""
    if isinstance(content, Messages):
        text = _template(model).full(content.messages, generation_prompt=True)
        return tuple(model.tokenizer.encode(text))
    return _verbatim(model, content, begin=True)


def append(model: ServedModel, history: History, content: Content) -> History:
    """The history with `content` at its end. Earlier tokens stay as they are; messages add the template's delta."""
    if not isinstance(content, Messages):
        longer = history.extended(_verbatim(model, content, begin=not history.token_ids))
        return replace(longer, after_messages=False)
    template = _template(model)
    if history.answer_open:
        history = _close_answer(model, history, template.closing)
    _ = template.closing  # a template that cannot do deltas is refused with the first message, not with a later one
    text = template.delta(content.messages) if history.token_ids else template.full(content.messages)
    return replace(history.extended(model.tokenizer.encode(text)), after_messages=True)


def open_answer(model: ServedModel, history: History) -> History:
    """The history that the model answers: after messages, with the generation prompt."""
    if not history.after_messages:
        return history
    prompt_ids = model.tokenizer.encode(_template(model).generation_prompt)
    return replace(history.extended(prompt_ids), after_messages=False, answer_open=True)


def _close_answer(model: ServedModel, history: History, closing: str) -> History:
    """Adds what the template puts after an answer, less what the history ends with already."""
    ids = tuple(model.tokenizer.encode(closing))
    present = next(n for n in range(len(ids), -1, -1) if history.token_ids[len(history.token_ids) - n :] == ids[:n])
    return replace(history.extended(ids[present:]), answer_open=False)


def _verbatim(model: ServedModel, content: Content, begin: bool) -> tuple[int, ...]:
    assert not isinstance(content, Messages)
    if isinstance(content, Text):
        return tuple(model.tokenizer.encode(content.text, begin))
    return content.token_ids


def _template(model: ServedModel) -> ChatTemplate:
    if model.template is None:
        raise FailedPreconditionError(f"model {model.name!r} has no chat template; send text or token ids")
    return model.template
