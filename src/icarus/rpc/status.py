"""Errors as gRPC statuses and back. The only place that knows which is which."""

import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from icarus import errors
from icarus.rpc.handlers import Around, SurroundingInterceptor

log = logging.getLogger(__name__)

_CODES: dict[type[errors.IcarusError], grpc.StatusCode] = {
    errors.InvalidInputError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExistsError: grpc.StatusCode.ALREADY_EXISTS,
    errors.FailedPreconditionError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ConflictError: grpc.StatusCode.ABORTED,
    errors.OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.UnavailableError: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_CLASSES = {code: cls for cls, code in _CODES.items()}
_MAX_MESSAGE_BYTES = 1500
_TOO_LARGE = "larger than max"  # gRPC says RESOURCE_EXHAUSTED of these too; a retry cannot help
_RESETS = ("RST_STREAM", "END_STREAM flag")
"""What gRPC says where a stream was reset on its way, by a proxy for example, under a code that it makes up."""
_CODES_OF_RESETS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.RESOURCE_EXHAUSTED)


def code_of(error: errors.IcarusError) -> grpc.StatusCode:
    """The status code of an error; INTERNAL for the classes that are nobody's fault but ours."""
    return next((code for cls, code in _CODES.items() if isinstance(error, cls)), grpc.StatusCode.INTERNAL)


def status_of(error: errors.IcarusError) -> Any:
    """A grpc.Status with the message and, for OverloadedError, a google.rpc.RetryInfo."""
    proto = status_pb2.Status(code=code_of(error).value[0], message=_cut(str(error)))
    if isinstance(error, errors.OverloadedError):
        info = error_details_pb2.RetryInfo()
        info.retry_delay.FromNanoseconds(int(error.retry_delay_seconds * 1e9))
        detail = any_pb2.Any()
        detail.Pack(info)
        proto.details.append(detail)
    return rpc_status.to_status(proto)


def _cut(message: str) -> str:
    """A message travels twice in headers of 8 KiB, once with three characters for a byte; past that gRPC would put
    RESOURCE_EXHAUSTED in the status's place."""
    start = message.encode(errors="replace")[:_MAX_MESSAGE_BYTES].decode(errors="ignore")
    return message if start == message else f"{start}..."


def error_from_rpc(error: grpc.aio.AioRpcError, peer: str = "") -> errors.IcarusError:
    """The error that the other side raised. `peer`, where given, is named in front of the message."""
    details = error.details() or error.code().name
    message = f"{peer}: {details}" if peer else details
    if error.code() in _CODES_OF_RESETS and any(words in details for words in _RESETS):
        return errors.UnavailableError(message)
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        if _TOO_LARGE in details:
            return errors.InvalidInputError(message)
        return errors.OverloadedError(message, _retry_delay(error))
    if error.code() is grpc.StatusCode.CANCELLED:  # by the other side; our own cancellation is a CancelledError
        return errors.UnavailableError(message)
    return _CLASSES.get(error.code(), errors.IcarusError)(message)


def _retry_delay(error: grpc.aio.AioRpcError, default_seconds: float = 1.0) -> float:
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]
    except ValueError:  # malformed details of a foreign server
        return default_seconds
    info = error_details_pb2.RetryInfo()
    for detail in status.details if status is not None else ():
        if detail.Unpack(info):
            return info.retry_delay.ToNanoseconds() / 1e9
    return default_seconds


class ErrorInterceptor(SurroundingInterceptor):
    """Ends a call whose handler raised an IcarusError with its status, and any other with a bare INTERNAL.

    Requests are parsed in here too, so that bytes that do not parse are INVALID_ARGUMENT.
    """

    parses = True

    def around(self, method: str) -> Around:
        return lambda context: _telling_errors(f"/{method}", context)


@contextlib.asynccontextmanager
async def _telling_errors(method: str, context: Any) -> AsyncIterator[None]:
    try:
        yield
    except Exception as error:
        await _abort(error, method, context)


async def _abort(error: Exception, method: str, context: Any) -> None:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if not isinstance(error, errors.IcarusError):
        log.error("unexpected error", exc_info=error, extra={"method": method})
        await context.abort(grpc.StatusCode.INTERNAL, "internal error; the server's log has the details")
        return
    if code_of(error) is grpc.StatusCode.INTERNAL:
        log.error("internal error", exc_info=error, extra={"method": method})
    status = status_of(error)
    await context.abort(status.code, status.details, status.trailing_metadata)
