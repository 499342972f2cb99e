"""Spans, where OpenTelemetry is in use in this process; elsewhere nothing is imported and nothing is done.

In use means that somebody has imported it: `icarus serve` where the OTEL_* variables say so (`rpc/tracing.py`), or the
program that the client is part of. Where spans go is for them to say, by the tracer provider.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

Metadata = tuple[tuple[str, str], ...]
Attribute = str | int | float | bool


class Span(Protocol):
    """The part of an OpenTelemetry span that we use."""

    def set_attributes(self, attributes: Mapping[str, Attribute]) -> None: ...
    def add_event(self, name: str) -> None: ...
    def record_exception(self, exception: BaseException) -> None: ...
    def set_status(self, status: Any, description: str | None = None) -> None: ...
    def end(self) -> None: ...


class _NoSpan:
    """Where OpenTelemetry is not in use."""

    def set_attributes(self, attributes: Mapping[str, Attribute]) -> None: ...
    def add_event(self, name: str) -> None: ...
    def record_exception(self, exception: BaseException) -> None: ...
    def set_status(self, status: Any, description: str | None = None) -> None: ...
    def end(self) -> None: ...


def start_span(name: str, kind: str, attributes: Mapping[str, Attribute]) -> Span:
    """A span that its holder ends, and that is not current. `kind` is client, server or internal."""
    trace = _opentelemetry()
    if trace is None:
        return _NoSpan()
    return trace.get_tracer("icarus").start_span(
        f"icarus.{name}",
        kind=trace.SpanKind[kind.upper()],
        attributes={f"icarus.{key}": value for key, value in attributes.items() if value != ""},
    )


def fail(span: Span, error: BaseException) -> None:
    """Marks a span as one that failed."""
    trace = _opentelemetry()
    if trace is not None:
        span.record_exception(error)
        span.set_status(trace.StatusCode.ERROR, str(error))


@contextmanager
def span(name: str, kind: str = "internal", **attributes: Attribute) -> Iterator[Span]:
    """A span around the body, and current in it. Not for the body of a generator: see `task_span`."""
    started = start_span(name, kind, attributes)
    with _failing(started):
        trace = _opentelemetry()
        if trace is None:
            yield started
            return
        with trace.use_span(started, record_exception=False, set_status_on_exception=False):
            yield started


@contextmanager
def task_span(name: str, kind: str = "internal", **attributes: Attribute) -> Iterator[Span]:
    """A span around the body, and current for the rest of the task: for generators, which another task may close."""
    started = start_span(name, kind, attributes)
    _make_current(started)
    with _failing(started):
        yield started


@contextmanager
def _failing(started: Span) -> Iterator[None]:
    """Ends the span with the body. A cancelled one has not failed."""
    try:
        yield
    except Exception as error:
        fail(started, error)
        raise
    finally:
        started.end()


def outgoing(of: Span | None = None) -> Metadata:
    """What a call carries so that the callee's spans join the trace: of the given span, or of the current one."""
    trace = _opentelemetry()
    if trace is None:
        return ()
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    propagate.inject(carrier, None if of is None else trace.set_span_in_context(of))
    return tuple((name.lower(), value) for name, value in carrier.items())


def join(metadata: Iterable[tuple[str, str | bytes]]) -> None:
    """Makes the caller's span, if its call carries one, the parent of this task's."""
    if _opentelemetry() is None:
        return
    from opentelemetry import context, propagate

    context.attach(propagate.extract(dict(metadata)))


def trace_id() -> str:
    """Of the current span, in hex; empty where there is none."""
    trace = _opentelemetry()
    if trace is None:
        return ""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else ""


def _make_current(started: Span) -> None:
    """Never undone: the task's context ends with the task."""
    trace = _opentelemetry()
    if trace is not None:
        from opentelemetry import context

        context.attach(trace.set_span_in_context(started))


def _opentelemetry() -> Any:
    return sys.modules.get("opentelemetry.trace")
