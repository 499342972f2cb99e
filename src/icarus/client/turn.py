"""What has arrived of a turn; the sync and the asyncio stream add only their way of waiting."""

from typing import Any

from icarus.client.messages import parse_delta, parse_finish_reason, parse_route, parse_usage
from icarus.client.results import Delta, Route, TurnResult
from icarus.errors import IcarusError, UnavailableError
from icarus.rpc.status import error_from_rpc
from icarus.types import FinishReason, Usage
from icarus.v1 import generation_pb2 as pb2


class TurnRecord:
    """A turn under way. Everything here may be read at any time."""

    def __init__(self, call: Any, turn_id: str):
        self.turn_id = turn_id
        self.finish_reason: FinishReason | None = None
        """None while the turn runs, and where it failed."""
        self.usage: Usage | None = None
        self.route: Route | None = None
        self.seed: int | None = None
        self._call = call
        self._error: IcarusError | None = None
        self._token_ids: list[int] = []
        self._text: list[str] = []

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._text)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The ids so far."""
        return tuple(self._token_ids)

    def cancel(self) -> None:
        """Ends the turn now; a session's history stays as it was before. Does nothing once the turn has ended."""
        if self.finish_reason is None and self._error is None:
            self.finish_reason = FinishReason.CANCELLED
            self._call.cancel()

    close = cancel

    @property
    def _cancelled(self) -> bool:
        return self.finish_reason is FinishReason.CANCELLED

    def _take(self, event: pb2.TurnEvent) -> Delta | None:
        """Records one piece of the stream; returns it if it is a delta."""
        if event.HasField("delta"):
            delta = parse_delta(event.delta)
            self._token_ids += delta.token_ids
            self._text.append(delta.text)
            return delta
        if event.HasField("finished"):
            self.finish_reason = parse_finish_reason(event.finished)
            self.usage = parse_usage(event.finished.usage)
            self.route = parse_route(event.finished.route)
            self.seed = event.finished.seed
        return None

    def _failed(self, error: Any) -> IcarusError:
        self._error = error_from_rpc(error)
        return self._error

    def _check_finished(self) -> None:
        """Called when the stream has ended without a status that says why."""
        if self.finish_reason is None and self._error is None:
            self._error = UnavailableError(f"the gateway dropped turn {self.turn_id} before its end; send it again")
        if self._error is not None:
            raise self._error

    def _result(self) -> TurnResult:
        self._check_finished()
        assert self.finish_reason is not None
        return TurnResult(
            self.turn_id, self.text, self.token_ids, self.finish_reason, self.usage, self.route, self.seed
        )
