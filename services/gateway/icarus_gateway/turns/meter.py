"""Measures a turn as it goes: waits as they end, and what became of it once, at its end, for metrics, trace and log."""

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from icarus import tracing
from icarus.errors import IcarusError, InvalidInputError, NotFoundError, OverloadedError, UnavailableError
from icarus.rpc.logs import bind_log_fields
from icarus.rpc.model_labels import ModelLabels
from icarus.types import FinishReason
from icarus_gateway.cluster.routing import Route
from icarus_gateway.metrics import GatewayMetrics, Outcome, Plan, Redispatch, Source
from icarus_gateway.turns.events import TurnRequest
from icarus_gateway.turns.prompt_sources import PromptSources

log = logging.getLogger(__name__)


class TurnMeter:
    """One turn's measures. The driver tells it what happens; what became of it is counted at its end."""

    def __init__(
        self,
        metrics: GatewayMetrics,
        labels: ModelLabels,
        request: TurnRequest,
        span: tracing.Span,
    ):
        self._metrics = metrics
        self._labels = labels
        self._request = request
        self._span = span
        self._model = labels.label(request.model)
        self._started = time.monotonic()
        self._is_reserved = False
        self._last_token_at = 0.0
        self._num_tokens = 0
        self._num_redispatches = 0
        self._sources = PromptSources()
        metrics.expect(self._model)
        metrics.turns_running.labels(self._model).inc()

    def placed(self, route: Route) -> None:
        """An attempt begins."""
        self._metrics.turns_placed.labels(Plan.PREFILL if route.prefill else Plan.DECODE_ONLY).inc()

    def redispatched(self, failure: IcarusError) -> None:
        """Another attempt follows one that failed."""
        self._num_redispatches += 1
        self._metrics.turns_redispatched.labels(_redispatch(failure)).inc()

    def reserved(self) -> None:
        """A decode worker has room for the turn."""
        if not self._is_reserved:
            self._is_reserved = True
            self._metrics.queue_seconds.labels(self._model).observe(time.monotonic() - self._started)

    def prompt_used(self, sources: PromptSources) -> None:
        """An attempt is about to give its first token; what an earlier one said is void."""
        self._sources = sources

    def tokens(self, num_received: int, num_taken: int) -> None:
        """So many came at once, of which the turn takes the first ones. All share the time since the last message; an
        attempt's first token comes alone."""
        if num_taken == 0:
            return
        now = time.monotonic()
        if self._num_tokens == 0:
            self._metrics.first_token_seconds.labels(self._model).observe(now - self._started)
            self._span.add_event("first_token")
        else:
            inter_token_seconds = self._metrics.inter_token_seconds.labels(self._model)
            for _ in range(num_taken):
                inter_token_seconds.observe((now - self._last_token_at) / num_received)
        self._last_token_at = now
        self._num_tokens += num_taken

    def finished(self, reason: FinishReason) -> None:
        """The turn ended as it should."""
        self._end(Outcome(reason.value))

    def failed(self, error: BaseException) -> None:
        self._end(_outcome(error))

    def _end(self, outcome: Outcome) -> None:
        seconds = time.monotonic() - self._started
        self._metrics.turns_running.labels(self._model).dec()
        self._metrics.turns.labels(self._model, outcome).inc()
        if outcome in (Outcome.STOP, Outcome.LENGTH):
            self._metrics.turn_seconds.labels(self._model).observe(seconds)
        used = self._sources
        self._metrics.completion_tokens.labels(self._model, outcome).inc(self._num_tokens)
        self._count(used)
        figures = {
            "outcome": str(outcome),
            "computed_tokens": used.computed,
            "local_tokens": used.local,
            "remote_tokens": used.remote,
            "completion_tokens": self._num_tokens,
            "redispatches": self._num_redispatches,
        }
        self._span.set_attributes({f"icarus.{name}": value for name, value in figures.items()})
        log.info("turn ended", extra={"model": self._request.model, **figures, "seconds": f"{seconds:.3f}"})

    def _count(self, used: PromptSources) -> None:
        """Once a turn: attempts that another one took over have used nothing that the turn kept."""
        for source, count in (
            (Source.COMPUTED, used.computed),
            (Source.LOCAL, used.local),
            (Source.REMOTE, used.remote),
        ):
            self._metrics.prompt_tokens.labels(self._model, source).inc(count)
        self._metrics.avoided_tokens.labels(self._model).inc(used.local + used.remote)
        for writer, count in used.written_under.items():
            self._metrics.cross_adapter_tokens.labels(self._labels.label(writer), self._model).inc(count)


@contextmanager
def measured(metrics: GatewayMetrics, labels: ModelLabels, request: TurnRequest) -> Iterator[TurnMeter]:
    """Around a turn, which says when it has `finished`. What is raised says how else it ended."""
    names = {"session_id": request.session_id, "turn_id": request.turn_id, "model": request.model}
    with tracing.span("turn", "server", **names) as span:
        bind_log_fields(turn=request.turn_id, session=request.session_id, trace=tracing.trace_id())
        meter = TurnMeter(metrics, labels, request, span)
        try:
            yield meter
        except BaseException as error:
            meter.failed(error)
            raise


def _outcome(error: BaseException) -> Outcome:
    if isinstance(error, asyncio.CancelledError):
        return Outcome.CANCELLED
    if isinstance(error, OverloadedError):
        return Outcome.OVERLOADED
    return Outcome.REFUSED if isinstance(error, InvalidInputError | NotFoundError) else Outcome.FAILED


def _redispatch(failure: IcarusError) -> Redispatch:
    if isinstance(failure, OverloadedError):
        return Redispatch.OVERLOADED
    return Redispatch.LOST if isinstance(failure, UnavailableError) else Redispatch.ADAPTER
