"""Checks what callers send. Every message names the field, its value and the limit."""

import math
import secrets
from dataclasses import dataclass

from icarus.errors import InvalidInputError
from icarus.types import DEFAULT_TENANT, SamplingParams
from icarus.v1 import generation_pb2
from icarus_gateway.chat_template import ChatMessage
from icarus_gateway.content import Content, Messages, Text, Tokens

_ROLES = ("system", "user", "assistant", "tool")
_MAX_STOPS = 16
_MAX_NAME_LENGTH = 256


@dataclass(frozen=True)
class Sampling:
    """How a turn is sampled, and the stop strings that only the gateway sees."""

    params: SamplingParams
    stop: tuple[str, ...] = ()


def parse_content(message: generation_pb2.Content, vocab_size: int) -> Content:
    """Raises InvalidInputError for content that is absent, empty or holds an id outside [0, vocab_size)."""
    form = message.WhichOneof("form")
    if form == "messages":
        return Messages(_parse_messages(message.messages))
    if form == "text":
        if not message.text:
            raise InvalidInputError("content.text is empty; give at least one character")
        return Text(message.text)
    if form == "token_ids":
        return Tokens(_parse_token_ids(message.token_ids, vocab_size))
    raise InvalidInputError("content is empty; give one of messages, text or token_ids")


def _parse_messages(message: generation_pb2.ChatMessages) -> tuple[ChatMessage, ...]:
    if not message.messages:
        raise InvalidInputError("content.messages is empty; give at least one message")
    for index, item in enumerate(message.messages):
        if item.role not in _ROLES:
            raise InvalidInputError(
                f"content.messages[{index}].role is {item.role!r}; it must be one of {', '.join(_ROLES)}"
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


def parse_sampling(message: generation_pb2.SamplingParams, eos_token_ids: frozenset[int]) -> Sampling:
    """Fills in defaults, draws a seed where none is given. Raises InvalidInputError for a value out of range."""
    default = SamplingParams()
    max_tokens = message.max_tokens if message.HasField("max_tokens") else default.max_tokens
    temperature = message.temperature if message.HasField("temperature") else default.temperature
    top_p = message.top_p if message.HasField("top_p") else default.top_p
    top_k = message.top_k if message.HasField("top_k") else default.top_k
    _require(max_tokens >= 1, "max_tokens", max_tokens, "at least 1")
    _require(temperature >= 0 and math.isfinite(temperature), "temperature", temperature, "a finite number from 0 up")
    _require(0 < top_p <= 1, "top_p", top_p, "in (0, 1]")
    _require(top_k >= 0, "top_k", top_k, "0 (every token) or more")
    _require(len(message.stop) <= _MAX_STOPS, "the number of stop strings", len(message.stop), f"at most {_MAX_STOPS}")
    _require(all(message.stop), "stop", list(message.stop), "strings that are not empty")
    seed = message.seed if message.HasField("seed") else secrets.randbits(64)
    stop_token_ids = frozenset() if message.ignore_eos else eos_token_ids
    return Sampling(SamplingParams(max_tokens, temperature, top_p, top_k, seed, stop_token_ids), tuple(message.stop))


def _require(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise InvalidInputError(f"{name} is {value}; it must be {rule}")


def check_length(num_prompt_tokens: int, max_tokens: int, context_length: int) -> None:
    """Raises InvalidInputError for an empty prompt, or one that does not fit the context with its answer."""
    if num_prompt_tokens == 0:
        raise InvalidInputError("the prompt is empty; give content or append some to the session")
    if num_prompt_tokens + max_tokens > context_length:
        raise InvalidInputError(
            f"prompt of {num_prompt_tokens} tokens + max_tokens {max_tokens} = {num_prompt_tokens + max_tokens}, "
            f"beyond the context of {context_length}; shorten the prompt or lower max_tokens"
        )


def parse_tenant(tenant: str) -> str:
    _require(len(tenant) <= _MAX_NAME_LENGTH, "the length of tenant", len(tenant), f"at most {_MAX_NAME_LENGTH}")
    return tenant or DEFAULT_TENANT


def parse_turn_id(turn_id: str) -> str:
    _require(len(turn_id) <= _MAX_NAME_LENGTH, "the length of turn_id", len(turn_id), f"at most {_MAX_NAME_LENGTH}")
    return turn_id or secrets.token_hex(8)
