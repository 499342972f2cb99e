"""What has arrived of a turn; the sync and the asyncio stream add only their way of waiting."""

from collections.abc import Callable
from typing import Any

from icarus import tracing
from icarus.client.messages import parse_delta, parse_finish_reason, parse_route, parse_usage
from icarus.client.results import Delta, Route, TurnResult
from icarus.client.retry import Attempts
from icarus.errors import DeadlineError, IcarusError, NotFoundError, UnavailableError
from icarus.types import FinishReason, TokenLogprobs, Usage
from icarus.v1 import generation_pb2 as pb2

OpenCall = Callable[[int, float | None, tracing.Metadata], Any]
Abandon = Callable[[str], None]


class TurnRecord:
    """A turn under way. Everything here may be read at any time.

    `open_call(resume_from, timeout, metadata)` sends the turn, or asks for its stream from an output token on;
    `abandon(turn_id)` tells the gateway that nobody wants it any more. `stop` is an event (of threading or asyncio)
    that ends a wait. Where the program traces, the turn is a span from here to its end.
    """

    def __init__(self, open_call: OpenCall, abandon: Abandon, turn_id: str, attempts: Attempts, stop: Any):
        self.turn_id = turn_id
        self.finish_reason: FinishReason | None = None
        """None while the turn runs, and where it failed."""
        self.usage: Usage | None = None
        self.route: Route | None = None
        self.seed: int | None = None
        self._open_call = open_call
        self._abandon = abandon
        self._attempts = attempts
        self._stop = stop
        self._span = tracing.start_span("generate", "client", {"turn_id": turn_id})
        self._call = open_call(0, attempts.seconds_left(), tracing.outgoing(self._span))
        self._error: IcarusError | None = None
        self._broken: IcarusError | None = None
        """Why the stream was last resumed."""
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._text: list[str] = []
        self._has_last_text = False
        """Text without tokens comes once, last; no count of tokens tells a resumed stream that it has been sent."""

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._text)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The ids so far."""
        return tuple(self._token_ids)

    @property
    def logprobs(self) -> tuple[TokenLogprobs, ...]:
        """One entry a token so far, where `logprobs` was asked for."""
        return tuple(self._logprobs)

    def cancel(self) -> None:
        """Ends the turn now; a session's history stays as it was before. Does nothing once the turn has ended."""
        if self.finish_reason is None and self._error is None:
            self.finish_reason = FinishReason.CANCELLED
            self._span.end()
            self._stop.set()
            self._call.cancel()
            self._abandon(self.turn_id)

    close = cancel

    @property
    def _cancelled(self) -> bool:
        return self.finish_reason is FinishReason.CANCELLED

    def _take(self, event: pb2.TurnEvent) -> Delta | None:
        """Records one piece of the stream; returns it if it is a delta."""
        if event.HasField("delta"):
            delta = parse_delta(event.delta)
            if self._has_last_text and not delta.token_ids:
                return None
            self._has_last_text = not delta.token_ids
            self._attempts.succeeded()
            if not self._token_ids:
                self._span.add_event("first_token")
            self._token_ids += delta.token_ids
            self._logprobs += delta.logprobs
            self._text.append(delta.text)
            return delta
        if event.HasField("finished"):
            self.finish_reason = parse_finish_reason(event.finished)
            self.usage = parse_usage(event.finished.usage)
            self.route = parse_route(event.finished.route)
            self.seed = event.finished.seed
            self._span.end()
        return None

    def _delay_after(self, error: IcarusError) -> float:
        """Seconds until the stream may be resumed. Raises and records the error where it may not."""
        if self._token_ids and self._broken is not None and isinstance(error, NotFoundError):
            raise self._failed(UnavailableError(f"{self._broken}; then, when the turn was to be resumed: {error}"))
        try:
            delay = self._attempts.delay_after(error, repeatable=True)
        except IcarusError:
            self._failed(error)
            if isinstance(error, DeadlineError):
                self._abandon(self.turn_id)
            raise
        self._broken = error
        return delay

    def _failed(self, error: IcarusError) -> IcarusError:
        """Records how the turn ended."""
        self._error = error
        tracing.fail(self._span, error)
        self._span.end()
        return error

    def _resume(self) -> None:
        """Asks for the rest of the stream."""
        self._span.add_event("resumed")
        metadata = tracing.outgoing(self._span)
        self._call = self._open_call(len(self._token_ids), self._attempts.seconds_left(), metadata)
        if self._cancelled:  # meanwhile, and the call before this one was cancelled
            self._call.cancel()

    def _dropped(self) -> IcarusError:
        """What it means that a stream ends without a status that says why."""
        return UnavailableError(f"the gateway dropped turn {self.turn_id} before its end; send it again")

    def _result(self) -> TurnResult:
        if self._error is not None:
            raise self._error
        assert self.finish_reason is not None
        return TurnResult(
            self.turn_id,
            self.text,
            self.token_ids,
            self.finish_reason,
            self.usage,
            self.route,
            self.seed,
            self.logprobs,
        )
