"""From content to token ids: what a history grows by."""

import asyncio

from icarus.errors import FailedPreconditionError, InvalidInputError
from icarus.text.chat_tokens import ChatTokens
from icarus.text.content import Content, Messages, Text
from icarus.text.served_model import ServedModel
from icarus_gateway.sessions.history import History

_LONG_CHARACTERS = 16_384  # some 10 ms of tokenising
_CHARACTERS_OF_A_MESSAGE = 64  # what rendering one outweighs


async def tokenise_prompt(model: ServedModel, content: Content) -> tuple[int, ...]:
    """`stateless_prompt`; in a thread where the content is long, so that other calls go on."""
    if _is_long(content):
        return await asyncio.to_thread(stateless_prompt, model, content)
    return stateless_prompt(model, content)


async def tokenise_more(model: ServedModel, history: History, content: Content) -> History:
    """`append`; in a thread where the content is long, so that other calls go on."""
    if _is_long(content):
        return await asyncio.to_thread(append, model, history, content)
    return append(model, history, content)


def stateless_prompt(model: ServedModel, content: Content) -> tuple[int, ...]:
    """The prompt of a call without a session; messages end with the generation prompt."""
    _require_short(model, content)
    if isinstance(content, Messages):
        return _known(model, _chat(model).full(content.messages, generation_prompt=True))
    return _verbatim(model, content, begin=True)


def append(model: ServedModel, history: History, content: Content) -> History:
    """The history with `content` at its end. Earlier tokens stay as they are; messages add the template's delta."""
    _require_short(model, content)
    if not isinstance(content, Messages):
        return history.extended(_verbatim(model, content, begin=not history.num_tokens))
    chat = _chat(model)
    if not history.num_tokens:
        return history.extended(_known(model, chat.first(content.messages)), after_messages=True)
    if history.end.answer_open:
        history = _close_answer(history, chat.closing)
    return history.extended(_known(model, chat.delta(content.messages)), after_messages=True)


def open_answer(model: ServedModel, history: History) -> History:
    """The history that the model answers: after messages, with the generation prompt."""
    if not history.end.after_messages:
        return history
    return history.extended(_chat(model).generation_prompt, answer_open=True)


def check_length(num_prompt_tokens: int, max_tokens: int, context_length: int) -> None:
    """Raises InvalidInputError for an empty prompt, or one that does not fit the context with its answer."""
    if num_prompt_tokens == 0:
        raise InvalidInputError("the prompt is empty; give content or append some to the session")
    if num_prompt_tokens + max_tokens > context_length:
        raise InvalidInputError(
            f"prompt of {num_prompt_tokens} tokens + max_tokens {max_tokens} = {num_prompt_tokens + max_tokens}, "
            f"beyond the context of {context_length}; shorten the prompt or lower max_tokens"
        )


def _close_answer(history: History, closing: tuple[int, ...]) -> History:
    """Adds what the template puts after an answer, less what the history ends with already."""
    end = history.last(len(closing))
    present = next(n for n in range(len(closing), -1, -1) if end[len(end) - n :] == closing[:n])
    return history.extended(closing[present:], answer_open=False)


def _require_short(model: ServedModel, content: Content) -> None:
    """Raises InvalidInputError for text that cannot fit the context. It is counted before it is tokenised, which takes
    a second for a megabyte."""
    length = _num_characters(content)
    most = model.context_length * model.tokenizer.longest_token
    if length > most:
        raise InvalidInputError(
            f"content has {length} characters, and a context of {model.context_length} tokens {most} at the very most"
        )


def _is_long(content: Content) -> bool:
    num_messages = len(content.messages) if isinstance(content, Messages) else 0
    return _num_characters(content) + num_messages * _CHARACTERS_OF_A_MESSAGE > _LONG_CHARACTERS


def _num_characters(content: Content) -> int:
    texts = [message.content for message in content.messages] if isinstance(content, Messages) else []
    return len(content.text) if isinstance(content, Text) else sum(map(len, texts))


def _verbatim(model: ServedModel, content: Content, begin: bool) -> tuple[int, ...]:
    assert not isinstance(content, Messages)
    if isinstance(content, Text):
        return _known(model, tuple(model.tokenizer.encode(content.text, begin)))
    return content.token_ids


def _known(model: ServedModel, token_ids: tuple[int, ...]) -> tuple[int, ...]:
    """Raises InvalidInputError for a token of the tokenizer's that the model has no embedding of."""
    if (highest := max(token_ids, default=0)) >= model.vocab_size:
        raise InvalidInputError(
            f"content comes to the token {model.tokenizer.token_of(highest)!r} with id {highest}, which the model does "
            f"not have: its vocabulary is [0, {model.vocab_size})"
        )
    return token_ids


def _chat(model: ServedModel) -> ChatTokens:
    if model.chat is None:
        problem = f": {model.template_problem}" if model.template_problem else ""
        raise FailedPreconditionError(f"model {model.name!r} has no chat template{problem}; send text or token ids")
    return model.chat
