"""What can go wrong, as the caller sees it. Every message names the thing, the value and what to do.

`rpc/status.py` turns each class into one gRPC status; nothing else does.
"""


class IcarusError(Exception):
    """Base of every error that a user can cause or must know about. The message is for that user."""


class InvalidInputError(IcarusError):
    """The request can never work as it is: INVALID_ARGUMENT."""


class NotFoundError(IcarusError):
    """The named model, session, adapter or worker is not there: NOT_FOUND."""


class AlreadyExistsError(IcarusError):
    """The name is taken: ALREADY_EXISTS."""


class FailedPreconditionError(IcarusError):
    """Right request, wrong state (an adapter for another base, a lapsed lease): FAILED_PRECONDITION."""


class ConflictError(IcarusError):
    """Another call on the same session is under way: ABORTED."""


class OverloadedError(IcarusError):
    """No room now: RESOURCE_EXHAUSTED, with a retry delay."""

    def __init__(self, message: str, retry_delay_seconds: float = 1.0):
        super().__init__(message)
        self.retry_delay_seconds = retry_delay_seconds


class UnavailableError(IcarusError):
    """A worker that is needed cannot be reached: UNAVAILABLE."""


class DeadlineError(IcarusError):
    """A step took longer than its limit: DEADLINE_EXCEEDED."""


class ConfigError(IcarusError):
    """A setting is wrong; the process does not start."""


class IntegrityError(IcarusError):
    """A pool's books do not balance: a bug of ours. INTERNAL."""
