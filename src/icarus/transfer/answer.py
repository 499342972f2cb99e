"""How the transfer thread answers: by futures that no caller can cancel, and that fail with an IcarusError."""

from concurrent.futures import Future
from typing import Any

from icarus.errors import IcarusError
from icarus.transfer.transport import TransferError


def new_answer() -> Future[Any]:
    """It is running already, so that no caller (nor asyncio on its behalf) can cancel it."""
    answer: Future[Any] = Future()
    answer.set_running_or_notify_cancel()
    return answer


def as_icarus_error(error: Exception, what: str) -> IcarusError:
    if isinstance(error, IcarusError):
        return error
    wrapped = TransferError(f"{what} failed: {str(error) or type(error).__name__}")
    wrapped.__cause__ = error
    return wrapped
