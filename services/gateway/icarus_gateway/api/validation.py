"""Checks what callers send. Every message names the field, its value and the limit."""

import math
import secrets
from collections.abc import Collection

from icarus.errors import InvalidInputError
from icarus.text.chat_template import ChatMessage
from icarus.text.content import Content, Messages, Text, Tokens
from icarus.types import DEFAULT_TENANT, SamplingParams
from icarus.v1 import generation_pb2
from icarus_gateway.turns.events import Sampling

_ROLES = ("system", "user", "assistant", "tool")
_MAX_STOPS = 16
_MAX_STOP_LENGTH = 1024
_MAX_STOP_IDS = 64
_MAX_LOGPROBS = 20
_MAX_NAME_LENGTH = 256


def parse_content(message: generation_pb2.Content, vocab_size: int, context_length: int) -> Content:
    """Raises InvalidInputError for content that is absent, empty, longer than the context or holds an id outside
    [0, vocab_size). Counts come first: they cost nothing, however much was sent."""
    form = message.WhichOneof("form")
    if form == "messages":
        _check_count("messages", len(message.messages.messages), context_length)
        return Messages(_parse_messages(message.messages))
    if form == "text":
        if not message.text:
            raise InvalidInputError("content.text is empty; give at least one character")
        return Text(message.text)
    if form == "token_ids":
        _check_count("token_ids", len(message.token_ids.ids), context_length)
        return Tokens(_parse_token_ids(message.token_ids, vocab_size))
    raise InvalidInputError("content is empty; give one of messages, text or token_ids")


def _check_count(form: str, count: int, context_length: int) -> None:
    if count > context_length:
        raise InvalidInputError(
            f"content.{form} has {count} entries, and the context {context_length} tokens; send fewer"
        )


def _parse_messages(message: generation_pb2.ChatMessages) -> tuple[ChatMessage, ...]:
    if not message.messages:
        raise InvalidInputError("content.messages is empty; give at least one message")
    for index, item in enumerate(message.messages):
        if item.role not in _ROLES:
            raise InvalidInputError(
                f"content.messages[{index}].role is {item.role[:20]!r}; it must be one of {', '.join(_ROLES)}"
            )
    return tuple(ChatMessage(item.role, item.content) for item in message.messages)


def _parse_token_ids(message: generation_pb2.TokenIds, vocab_size: int) -> tuple[int, ...]:
    if not message.ids:
        raise InvalidInputError("content.token_ids is empty; give at least one id")
    for index, token_id in enumerate(message.ids):
        if token_id >= vocab_size:
            raise InvalidInputError(
                f"content.token_ids[{index}] is {token_id}; the model's vocabulary is [0, {vocab_size})"
            )
    return tuple(message.ids)


def parse_sampling(message: generation_pb2.SamplingParams, eos_token_ids: Collection[int], vocab_size: int) -> Sampling:
    """Fills in defaults, draws a seed where none is given. Raises InvalidInputError for a value out of range."""
    eos = frozenset(() if message.ignore_eos else eos_token_ids)
    given = {name: getattr(message, name) for name in _OPTIONAL if message.HasField(name)}
    params = SamplingParams(**{"seed": secrets.randbits(64), **given}, stop_token_ids=eos | {*message.stop_token_ids})
    _check_numbers(params)
    _check_stops(message, vocab_size)
    return Sampling(params, tuple(message.stop))


_OPTIONAL = tuple(field.name for field in generation_pb2.SamplingParams.DESCRIPTOR.fields if field.has_presence)
"""The fields that are numbers; each is named as in SamplingParams."""


def _check_numbers(params: SamplingParams) -> None:
    for name, holds, rule in (
        ("max_tokens", params.max_tokens >= 1, "at least 1"),
        ("min_tokens", 0 <= params.min_tokens <= params.max_tokens, f"in [0, max_tokens {params.max_tokens}]"),
        ("temperature", 0 <= params.temperature < math.inf, "a finite number from 0 up"),
        ("top_p", 0 < params.top_p <= 1, "in (0, 1]"),
        ("top_k", params.top_k >= 0, "0 (every token) or more"),
        ("min_p", 0 <= params.min_p <= 1, "in [0, 1]"),
        ("frequency_penalty", -2 <= params.frequency_penalty <= 2, "in [-2, 2]"),
        ("presence_penalty", -2 <= params.presence_penalty <= 2, "in [-2, 2]"),
        ("repetition_penalty", 0.01 <= round(params.repetition_penalty, 6) <= 100, "in [0.01, 100]"),
        ("logprobs", params.logprobs is None or 0 <= params.logprobs <= _MAX_LOGPROBS, f"in [0, {_MAX_LOGPROBS}]"),
    ):
        _require(holds, name, _as_written(getattr(params, name)), rule)


def _as_written(value: float | int | None) -> float | int | None:
    """1.1 came over the wire as the float32 1.10000002384."""
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _check_stops(message: generation_pb2.SamplingParams, vocab_size: int) -> None:
    stop, ids = message.stop, message.stop_token_ids
    _require(len(stop) <= _MAX_STOPS, "the number of stop strings", len(stop), f"at most {_MAX_STOPS}")
    _require(all(stop), "stop", list(stop), "strings that are not empty")
    longest = max(map(len, stop), default=0)
    _require(longest <= _MAX_STOP_LENGTH, "the length of a stop string", longest, f"at most {_MAX_STOP_LENGTH}")
    _require(len(ids) <= _MAX_STOP_IDS, "the number of stop_token_ids", len(ids), f"at most {_MAX_STOP_IDS}")
    for index, token_id in enumerate(ids):
        _require(token_id < vocab_size, f"stop_token_ids[{index}]", token_id, f"in the vocabulary, [0, {vocab_size})")


def _require(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise InvalidInputError(f"{name} is {value}; it must be {rule}")


def parse_tenant(tenant: str) -> str:
    _require(len(tenant) <= _MAX_NAME_LENGTH, "the length of tenant", len(tenant), f"at most {_MAX_NAME_LENGTH}")
    return tenant or DEFAULT_TENANT


def parse_model(model: str) -> str:
    _require(len(model) <= _MAX_NAME_LENGTH, "the length of model", len(model), f"at most {_MAX_NAME_LENGTH}")
    return model


def parse_session_id(session_id: str) -> str:
    length = len(session_id)
    _require(length <= _MAX_NAME_LENGTH, "the length of session_id", length, f"at most {_MAX_NAME_LENGTH}")
    return session_id


def parse_turn_id(turn_id: str) -> str:
    _require(len(turn_id) <= _MAX_NAME_LENGTH, "the length of turn_id", len(turn_id), f"at most {_MAX_NAME_LENGTH}")
    return turn_id or secrets.token_hex(8)
