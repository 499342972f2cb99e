"""What has arrived of a turn; the sync and the asyncio stream add only their way of waiting."""

import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from icarus import tracing
from icarus.client.connection import Target, is_answer, reached_nobody
from icarus.client.messages import TurnRequest, parse_delta, parse_finish_reason, parse_route, parse_usage, rest_of
from icarus.client.results import Delta, Route, TurnResult
from icarus.client.retry import Attempts
from icarus.errors import (
    DeadlineError,
    FailedPreconditionError,
    IcarusError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)
from icarus.tracing import Metadata
from icarus.types import FinishReason, TokenLogprobs, Usage
from icarus.v1 import generation_pb2 as pb2
from icarus.v1 import generation_service_pb2, session_service_pb2


class TurnConnection(Protocol):
    """What a turn needs of the connection: the sync or the asyncio one."""

    target: Target

    def open(self, method: Callable[..., Any], request: TurnRequest, timeout: float | None, more: Metadata) -> Any:
        """The call whose answer is the turn's stream; `more` is metadata."""
        ...

    def give_up(self, call: Any, turn_id: str) -> Any:
        """Ends a call, and tells the gateway that nobody will come back for the turn: that call, or None where the
        connection is closed. Waits for nothing."""
        ...

    def drop(self, let_go: Callable[[], None]) -> None:
        """Has it called where that is safe: the collector may be who calls."""
        ...


class _Hold:
    """What a turn holds at the gateway. Outlives a stream that is dropped, so as to let it go."""

    def __init__(
        self, connection: TurnConnection, method: Callable[..., Any], request: TurnRequest, attempts: Attempts
    ):
        self._connection = connection
        self._method = method
        self._request = request
        self._attempts = attempts
        self.is_of_session = isinstance(request, session_service_pb2.GenerateTurnRequest)
        self.span = tracing.start_span("generate", "client", {"turn_id": request.turn_id})
        self.open(0)

    def open(self, num_received: int) -> None:
        """Sends the turn, or asks for its stream from an output token on."""
        request = rest_of(self._request, num_received)
        metadata = tracing.outgoing(self.span)
        self.call = self._connection.open(self._method, request, self._attempts.seconds_left(), metadata)

    def let_go(self) -> Any:
        """Nobody wants the turn any more. Returns what `give_up` does."""
        self.span.end()
        return self.tell_of_end()

    def tell_of_end(self) -> Any:
        """As `let_go`, of a turn whose span has ended."""
        return self._connection.give_up(self.call, self._request.turn_id)


class TurnRecord:
    """A turn under way. Everything here may be read at any time.

    `stop` is an event (of threading or asyncio) that ends a wait. A turn whose record is dropped is cancelled.
    Where the program traces, the turn is a span from here to its end.
    """

    def __init__(
        self,
        connection: TurnConnection,
        method: Callable[..., Any],
        request: TurnRequest,
        attempts: Attempts,
        stop: Any,
    ):
        self.turn_id: str = request.turn_id
        self.finish_reason: FinishReason | None = None
        """None while the turn runs, and where it failed. Of one that missed its deadline, or that its stream gave up,
        `with` leaves the gateway's last word: STOP or LENGTH where it had finished, and counts; None where it was
        cancelled, or where nobody answered."""
        self.usage: Usage | None = None
        self.route: Route | None = None
        self.seed: int | None = None
        self.lost: IcarusError | None = None
        """Why the stream gave up, where the turn may have finished or still finish for all that is known."""
        self._error_of = connection.target.error_of
        self._attempts = attempts
        self._stop = stop
        self._hold = _Hold(connection, method, request, attempts)
        self._on_drop = weakref.finalize(self, connection.drop, self._hold.let_go)
        """Alive until the turn ends."""
        self._on_drop.atexit = False
        self._error: IcarusError | None = None
        self._broken: IcarusError | None = None
        """Why the stream was last resumed."""
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._text: list[str] = []
        self._cancelled = False
        """By its reader, who may be too late: `finish_reason` says what became of the turn."""
        self._cancelling = threading.RLock()
        """Who leaves `with` while another thread cancels finds the farewell on its way."""
        self._farewell: Any = None
        """The call that told the gateway that the turn was given up."""
        self._may_run = False
        """It was sent, its connection broke, and nothing has come since that says what became of it: see `_broke`."""
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

    @property
    def is_whole(self) -> bool:
        """Whether the stream was read to the turn's end. One that was left before is not, even if its turn counts."""
        return self.finish_reason is not None and not self._cancelled and self._error is None

    def cancel(self) -> None:
        """Ends the turn now; a session's history stays as it was before. Does nothing once the turn has ended. A turn
        that may go on after its stream gave up is ended if the gateway can be reached within a second.

        The gateway may have finished it while its stream was read slowly: it counts then. Leaving `with` waits for the
        gateway's word, and `finish_reason` and `usage` then say so.
        """
        with self._cancelling:
            if self.finish_reason is None and self._error is None:
                self._cancelled = True
                self.finish_reason = FinishReason.CANCELLED
                self._stop.set()
                if self._on_drop.detach():
                    self._farewell = self._hold.let_go()
            elif self._error is not None and self._may_run and self._farewell is None:
                self._farewell = self._hold.tell_of_end()

    close = cancel

    @property
    def _call(self) -> Any:
        return self._hold.call

    def _take(self, event: pb2.TurnEvent) -> Delta | None:
        """Records one piece of the stream; returns it if it is a delta."""
        self._may_run = False
        if event.HasField("delta"):
            delta = parse_delta(event.delta)
            if self._has_last_text and not delta.token_ids:
                return None
            self._has_last_text = not delta.token_ids
            self._attempts.succeeded()
            if not self._token_ids:
                self._hold.span.add_event("first_token")
            self._token_ids += delta.token_ids
            self._logprobs += delta.logprobs
            self._text.append(delta.text)
            return delta
        if event.HasField("finished"):
            self._record_end(event.finished)
            if self._on_drop.detach():
                self._hold.span.end()
        return None

    def _record_end(self, finished: pb2.TurnFinished) -> None:
        self.finish_reason = parse_finish_reason(finished)
        self.usage = parse_usage(finished.usage)
        self.route = parse_route(finished.route)
        self.seed = finished.seed

    def _take_farewell(self, answer: generation_service_pb2.CancelTurnResponse) -> None:
        if answer.HasField("finished"):
            self._record_end(answer.finished)

    def _broke(self, rpc_error: Any) -> IcarusError:
        """The error that a call of the stream ended with, and what it says of the turn.

        A connection that breaks leaves the turn as it is, as does an attempt that reaches nobody. An answer is its end,
        or says that there is none; but a call that was turned away for want of room did not come to the turn.
        """
        error = self._error_of(rpc_error)
        if is_answer(rpc_error):
            self._may_run = self._may_run and isinstance(error, OverloadedError)
        elif isinstance(error, UnavailableError) and not reached_nobody(error):
            self._may_run = True
            self._attempts.broke()
        return error

    def _delay_after(self, error: IcarusError) -> float:
        """Seconds until the stream may be resumed. Raises and records the error where it may not."""
        if self._token_ids and self._broken is not None and isinstance(error, NotFoundError):
            raise self._failed(UnavailableError(f"{self._broken}; then, when the turn was to be resumed: {error}"))
        try:
            delay = self._attempts.delay_after(error, repeatable=True)
        except IcarusError as last:
            raise self._failed(self._explain(last)) from None
        self._broken = error
        return delay

    def _explain(self, error: IcarusError) -> IcarusError:
        """With what to do about a turn that may have run, or run still."""
        if not (self._may_run and isinstance(error, UnavailableError | OverloadedError)):
            return error
        self.lost = error
        look = ", or look at the session's history" if self._hold.is_of_session else ""
        message = (
            f"{error}; turn {self.turn_id} was sent, and may have finished or still finish: ask again with the same "
            "turn_id before its `with` is left or the client closed, which end it (after `with` finish_reason tells)"
            f"{look}"
        )
        if isinstance(error, OverloadedError):
            return OverloadedError(message, error.retry_delay_seconds)
        return UnavailableError(message)

    def _failed(self, error: IcarusError) -> IcarusError:
        """Records how the turn ended. One that missed its deadline may be under way at the gateway, or done."""
        self._error = error
        tracing.fail(self._hold.span, error)
        if self._on_drop.detach():
            if isinstance(error, DeadlineError):
                self._farewell = self._hold.let_go()
            else:
                self._hold.span.end()
        return error

    def _resume(self) -> None:
        """Asks for the rest of the stream."""
        self._hold.span.add_event("resumed")
        self._hold.open(len(self._token_ids))
        if self._cancelled:  # meanwhile, and the call before this one was cancelled
            self._hold.let_go()

    def _dropped(self) -> IcarusError:
        """What it means that a stream ends without a status that says why."""
        return UnavailableError(f"the gateway dropped turn {self.turn_id} before its end; send it again")

    def _result(self) -> TurnResult:
        if self._error is not None:
            raise self._error
        finish_reason, usage, route, seed = self.finish_reason, self.usage, self.route, self.seed
        if self._cancelled or finish_reason is None or usage is None or route is None or seed is None:
            raise FailedPreconditionError(
                f"turn {self.turn_id} was cancelled; what had arrived is in the stream's text and token_ids"
            )
        return TurnResult(
            self.turn_id,
            self.text,
            self.token_ids,
            finish_reason,
            usage,
            route,
            seed,
            self.logprobs,
        )
