"""Arguments to messages and messages to results: all that the sync and the asyncio client share."""

import dataclasses
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict, cast

from icarus.client.arguments import build, check_path, check_text
from icarus.client.results import (
    Appended,
    Cluster,
    Delta,
    LeftOutWorker,
    Model,
    ModelList,
    Route,
    SessionState,
    SessionSummary,
    Worker,
)
from icarus.errors import InvalidInputError
from icarus.types import AdapterMode, FinishReason, Role, TokenLogprob, TokenLogprobs, Usage
from icarus.v1 import cluster_service_pb2 as cluster_pb2
from icarus.v1 import generation_pb2 as pb2
from icarus.v1 import generation_service_pb2 as generation_pb2
from icarus.v1 import model_service_pb2 as model_pb2
from icarus.v1 import session_service_pb2 as session_pb2

Messages = Sequence[Mapping[str, str]]
"""Chat messages: `{"role": "user", "content": "..."}`."""


class Sampling(TypedDict, total=False):
    """How to answer; what is left out is the gateway's default."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop: str | Sequence[str]
    ignore_eos: bool
    min_tokens: int
    min_p: float
    frequency_penalty: float
    presence_penalty: float
    repetition_penalty: float
    stop_token_ids: Sequence[int]
    logprobs: int


TurnRequest = generation_pb2.GenerateRequest | session_pb2.GenerateTurnRequest


def build_turn(
    tenant: str,
    model: str,
    content: pb2.Content | None,
    turn_id: str | None,
    resume_from: int,
    sampling: Sampling,
    resumable: bool,
    min_delta_tokens: int,
    session_id: str | None = None,
) -> TurnRequest:
    """Raises InvalidInputError naming what cannot be sent."""
    fields: dict[str, Any] = {
        "tenant": tenant,
        "model": check_text("model", model),
        "content": content,
        "turn_id": check_text("turn_id", uuid.uuid4().hex if turn_id in (None, "") else turn_id),
        "resume_from": resume_from,
        "sampling": build_sampling(sampling),
        "resumable": resumable,
        "min_delta_tokens": min_delta_tokens,
    }
    if session_id is None:
        return build(generation_pb2.GenerateRequest, **fields)
    return build(session_pb2.GenerateTurnRequest, session_id=session_id, **fields)


def rest_of(request: TurnRequest, num_received: int) -> TurnRequest:
    """The request for what comes after so many more output tokens."""
    rest = type(request)()
    rest.CopyFrom(request)  # pyright: ignore[reportArgumentType]
    rest.resume_from += num_received
    return rest


def build_content(text: str | None, messages: Messages | None, token_ids: Sequence[int] | None) -> pb2.Content | None:
    """None when nothing is given. Raises InvalidInputError for more than one form or a malformed one."""
    if sum(form is not None for form in (text, messages, token_ids)) > 1:
        raise InvalidInputError("give one of text, messages and token_ids, not several")
    if text is not None:
        return pb2.Content(text=check_text("text", text))
    if messages is not None:
        return pb2.Content(messages=pb2.ChatMessages(messages=_chat_messages(messages)))
    if token_ids is not None:
        try:
            return pb2.Content(token_ids=pb2.TokenIds(ids=token_ids))
        except (TypeError, ValueError) as error:
            raise InvalidInputError(f"token_ids takes integers in [0, vocabulary size): {error}") from None
    return None


def _chat_messages(messages: Messages) -> list[pb2.ChatMessage]:
    if isinstance(messages, str | Mapping) or not isinstance(messages, Iterable):
        raise InvalidInputError(f"messages is {messages!r}; it is a list of messages with 'role' and 'content'")
    return [_chat_message(message) for message in messages]


def _chat_message(message: Mapping[str, str]) -> pb2.ChatMessage:
    is_whole = isinstance(message, Mapping) and set(message) == {"role", "content"}
    if not is_whole or not all(isinstance(value, str) for value in message.values()):
        raise InvalidInputError(f"a message has 'role' and 'content', both text, not {message!r}")
    return pb2.ChatMessage(**{name: check_text(f"a message's {name}", value) for name, value in message.items()})


def build_sampling(options: Sampling) -> pb2.SamplingParams:
    """Raises InvalidInputError naming the option that is unknown or of the wrong type."""
    for name in options:
        if name not in Sampling.__annotations__:
            raise InvalidInputError(f"unknown option {name!r}; known are {', '.join(Sampling.__annotations__)}")
    stop = options.get("stop")
    listed = {**options, "stop": [stop]} if isinstance(stop, str) else options
    return build(pb2.SamplingParams, **listed)


def build_load_adapter(
    name: str,
    path: str | os.PathLike[str],
    mode: AdapterMode | str | None,
    workers: Sequence[str],
    replace: bool,
    pin: bool,
) -> model_pb2.LoadAdapterRequest:
    modes = {
        None: model_pb2.ADAPTER_MODE_UNSPECIFIED,
        AdapterMode.SHARED: model_pb2.ADAPTER_MODE_SHARED,
        AdapterMode.PRIVATE: model_pb2.ADAPTER_MODE_PRIVATE,
    }
    if not isinstance(mode, str | None) or mode not in modes:
        raise InvalidInputError(f"mode is 'shared', 'private' or None, not {mode!r}")
    if isinstance(workers, str) or not isinstance(workers, Iterable):
        raise InvalidInputError(f"workers is {workers!r}; it is a list of workers' ids")
    return build(
        model_pb2.LoadAdapterRequest,
        name=check_text("name", name),
        path=check_path("path", path),
        mode=modes[cast(Any, mode)],
        worker_ids=[check_text("workers", worker) for worker in workers],
        replace=replace,
        pin=pin,
    )


def parse_delta(message: pb2.TurnDelta) -> Delta:
    return Delta(tuple(message.token_ids), message.text, tuple(map(_token_logprobs, message.logprobs)))


def _token_logprobs(message: pb2.TokenLogprobs) -> TokenLogprobs:
    return TokenLogprobs(_token_logprob(message.chosen), tuple(map(_token_logprob, message.top)))


def _token_logprob(message: pb2.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(message.token_id, message.logprob)


def parse_finish_reason(message: pb2.TurnFinished) -> FinishReason:
    return _FINISH_REASONS.get(message.finish_reason, FinishReason.STOP)


_FINISH_REASONS = {
    pb2.FINISH_REASON_STOP: FinishReason.STOP,
    pb2.FINISH_REASON_LENGTH: FinishReason.LENGTH,
}


def parse_usage(message: pb2.Usage) -> Usage:
    return Usage(**{field.name: getattr(message, field.name) for field in dataclasses.fields(Usage)})


def parse_route(message: pb2.Route) -> Route:
    prefill_worker = message.prefill_worker if message.HasField("prefill_worker") else None
    return Route(message.decode_worker, prefill_worker)


def parse_session(message: session_pb2.Session) -> SessionState:
    return SessionState(message.session_id, tuple(message.token_ids), message.num_turns, message.expires_in_seconds)


def parse_summary(message: session_pb2.SessionSummary) -> SessionSummary:
    return SessionSummary(message.session_id, message.num_tokens, message.num_turns, message.expires_in_seconds)


def parse_appended(message: session_pb2.AppendContentResponse) -> Appended:
    return Appended(message.num_appended_tokens, message.num_tokens)


def parse_models(message: model_pb2.ListModelsResponse) -> ModelList:
    return ModelList(tuple(map(parse_model, message.models)), message.context_length)


def parse_model(message: model_pb2.Model) -> Model:
    modes = {model_pb2.ADAPTER_MODE_SHARED: AdapterMode.SHARED, model_pb2.ADAPTER_MODE_PRIVATE: AdapterMode.PRIVATE}
    return Model(
        message.name,
        message.is_base,
        modes.get(message.mode),
        message.digest,
        tuple(message.worker_ids),
        message.pinned,
        tuple(message.resident_worker_ids),
    )


def parse_cluster(message: cluster_pb2.GetClusterResponse) -> Cluster:
    left_out = tuple(map(_left_out, message.left_out))
    return Cluster(tuple(map(_worker, message.workers)), message.block_size, left_out)


def _left_out(message: cluster_pb2.LeftOutWorker) -> LeftOutWorker:
    return LeftOutWorker(
        message.worker_id, Role(message.role), message.address, message.silent_seconds, message.draining
    )


def _worker(message: cluster_pb2.Worker) -> Worker:
    values: dict[str, Any] = {field.name: getattr(message, field.name) for field in dataclasses.fields(Worker)}
    return Worker(**{**values, "role": Role(message.role)})
