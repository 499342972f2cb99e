"""When a call is made again, and after how long: what the sync and the asyncio client share of it."""

import random
import time
from dataclasses import dataclass

from icarus.client.arguments import check_finite
from icarus.errors import DeadlineError, IcarusError, InvalidInputError, OverloadedError, UnavailableError

_MAX_DOUBLINGS = 1000
"""A float holds no more than 1023."""
_FOREVER_SECONDS = 10 * 365 * 86_400.0
"""A longer timeout is none, and no delay is longer: clocks have an end."""
_RESUME_DELAY_SECONDS = 0.5
"""At most, while a turn may be under way: a gateway does not keep it going for long."""
_SLACK_SECONDS = 0.1
"""Clocks differ by less: who says first that a deadline has passed."""


@dataclass(frozen=True)
class RetryPolicy:
    """How often a call is made again where that is safe.

    Safe are calls that change nothing or the same thing twice, and turns: the gateway knows them by their turn_id, and
    goes on after the tokens that have arrived. Other calls (create, append, fork, load, unload) are made once.
    """

    retries: int = 5
    """Attempts after the first; for a turn, attempts in a row that bring no token. 0: none."""
    first_delay_seconds: float = 0.1
    """Doubles with each attempt; up to half of it is left out at random, so that clients do not come in step."""
    max_delay_seconds: float = 5.0
    wait_when_overloaded: bool = False
    """Also after OverloadedError, not before the delay that the gateway asks for. Then any call, since it was refused
    before it did anything."""
    resume_seconds: float = 15.0
    """How long at least, from the break of its connection on, a turn that may be under way is asked for, twice a second
    or more often, beyond `retries`: by default longer than a gateway keeps it going without a listener (its
    resume_grace_seconds, 10)."""

    @property
    def resumes(self) -> bool:
        """Whether turns are asked to outlive their connection for a while."""
        return self.retries > 0

    def __post_init__(self) -> None:
        if not isinstance(self.retries, int) or isinstance(self.retries, bool) or self.retries < 0:
            raise InvalidInputError(f"retries is {self.retries!r}; it is a whole number, 0 or more")
        for name in ("first_delay_seconds", "max_delay_seconds", "resume_seconds"):
            check_finite(name, getattr(self, name))


DEFAULT_RETRY = RetryPolicy()


class Attempts:
    """The attempts of one call, `what` in messages, under one deadline: `timeout` seconds from now, or none."""

    def __init__(self, policy: RetryPolicy, timeout: float | None, what: str = "the call"):
        self._policy = policy
        self._what = what
        self._timeout = None if timeout is None or timeout > _FOREVER_SECONDS else timeout
        self._deadline = None if self._timeout is None else time.monotonic() + self._timeout
        self._failures = 0
        self._breaks = 0
        self._resume_until = 0.0

    def seconds_left(self) -> float | None:
        """What is left until the deadline, as a call's timeout."""
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0.0)

    def succeeded(self) -> None:
        """Something new arrived: the count and the delays begin again."""
        self._failures = self._breaks = 0
        self._resume_until = 0.0

    def broke(self) -> None:
        """A turn's call had been sent when its connection broke: `resume_seconds` begin, again if they had begun.

        Not more than `retries` times in a row: a proxy may break whatever it is sent.
        """
        if self._breaks < self._policy.retries:
            self._breaks += 1
            self._resume_until = time.monotonic() + self._policy.resume_seconds

    def delay_after(self, error: IcarusError, repeatable: bool) -> float:
        """Seconds until the next attempt. Raises the error where there is none, as when it would miss the deadline."""
        now = time.monotonic()
        if (
            isinstance(error, DeadlineError)
            and (self.seconds_left() or 0) < _SLACK_SECONDS
            and self._timeout is not None
        ):
            raise DeadlineError(f"{self._what} took longer than {self._timeout:g} s")
        resuming = now < self._resume_until
        if not self._may_repeat(error, repeatable) or (self._failures >= self._policy.retries and not resuming):
            raise error
        grown = self._policy.first_delay_seconds * 2 ** min(self._failures, _MAX_DOUBLINGS)
        most = min(self._policy.max_delay_seconds, _RESUME_DELAY_SECONDS if resuming else _FOREVER_SECONDS)
        delay = min(grown, most) * random.uniform(0.5, 1.0)
        if isinstance(error, OverloadedError):
            delay += error.retry_delay_seconds
        if self._deadline is not None and now + delay >= self._deadline:
            raise error
        self._failures += 1
        return delay

    def _may_repeat(self, error: IcarusError, repeatable: bool) -> bool:
        if isinstance(error, OverloadedError):
            return self._policy.wait_when_overloaded
        return repeatable and isinstance(error, UnavailableError)
