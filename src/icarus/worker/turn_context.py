"""What the logs and the trace of a worker's share of a turn have in common."""

from collections.abc import Iterator
from contextlib import contextmanager

from icarus import tracing
from icarus.rpc.logs import bind_log_fields


@contextmanager
def turn_context(work: str, session_id: str, turn_id: str, adapter: str) -> Iterator[tracing.Span]:
    """Around the work of one call: its span, and the turn's names on every line that its task logs."""
    with tracing.task_span(work, "server", session_id=session_id, turn_id=turn_id, adapter=adapter) as span:
        bind_log_fields(turn=turn_id, session=session_id, trace=tracing.trace_id())
        yield span
