"""What a worker observes as it happens. State that it has anyway (blocks, leases, adapters) is in `state_metrics.py`;
every name and label is in docs/metrics.md."""

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram

from icarus.engine.step_report import MIXED, RowKind, StepReport
from icarus.rpc.metrics import SECONDS_BUCKETS

_STEP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 10)
_TRANSFER_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_BATCH_BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)


@dataclass(frozen=True)
class WorkerMetrics:
    """`kind` is a RowKind of `engine/step_report.py`, or "mixed"."""

    step_seconds: Histogram
    step_rows: Counter
    batch_size: Histogram
    encoder_seconds: Counter
    queue_seconds: Histogram
    transfer_seconds: Histogram

    @classmethod
    def register(cls, registry: CollectorRegistry) -> "WorkerMetrics":
        """Labels that take few values have all their series from the start, at 0."""

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, text, labels, registry=registry, buckets=buckets)

        metrics = cls(
            step_seconds=histogram(
                "icarus_step_seconds", "Steps, by the kind of their rows or 'mixed'.", _STEP_BUCKETS, "kind"
            ),
            step_rows=counter("icarus_step_rows", "Positions that steps computed, by the kind of their rows.", "kind"),
            batch_size=histogram("icarus_batch_size", "Requests in a step.", _BATCH_BUCKETS),
            encoder_seconds=counter("icarus_encoder_seconds", "Step time spent on encoder rows, by share of rows."),
            queue_seconds=histogram(
                "icarus_request_queue_seconds", "Arrival at the worker until room was reserved.", SECONDS_BUCKETS
            ),
            transfer_seconds=histogram(
                "icarus_transfer_seconds", "Reads of other workers' blocks, from post to done.", _TRANSFER_BUCKETS
            ),
        )
        for kind in (*RowKind, MIXED):
            metrics.step_seconds.labels(kind)
        for kind in RowKind:
            metrics.step_rows.labels(kind)
        return metrics

    def observe_step(self, report: StepReport) -> None:
        """Called on the engine thread, after each step."""
        self.step_seconds.labels(report.kind).observe(report.seconds)
        self.batch_size.observe(report.num_requests)
        self.encoder_seconds.inc(report.encoder_seconds)
        for kind, count in report.rows.items():
            self.step_rows.labels(kind).inc(count)
