"""What the gateway counts. State that it has anyway (workers, sessions) is in `state_metrics.py`; every name and label
is in docs/metrics.md."""

from dataclasses import dataclass
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from icarus.rpc.metrics import SECONDS_BUCKETS

_TOKEN_SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 10)


class Outcome(StrEnum):
    """How a turn ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    REFUSED = "refused"
    """The caller's mistake: a model that is not there, a prompt that no pool can hold."""
    OVERLOADED = "overloaded"
    """No room now."""
    FAILED = "failed"


class Source(StrEnum):
    """Where the KV of prompt tokens came from."""

    COMPUTED = "computed"
    LOCAL = "local"
    REMOTE = "remote"


class Redispatch(StrEnum):
    """Why an attempt at a turn was given up for another."""

    LOST = "lost"
    """The worker could not be reached any more."""
    OVERLOADED = "overloaded"
    ADAPTER = "adapter"
    """The worker does not have the turn's weights any more."""


class Plan(StrEnum):
    """Where an attempt at a turn was placed."""

    DECODE_ONLY = "decode_only"
    PREFILL = "prefill"
    """A prefill worker first."""


@dataclass(frozen=True)
class GatewayMetrics:
    """`model` is the name that turns ask for, by `ModelLabels`."""

    turns: Counter
    turns_running: Gauge
    turns_placed: Counter
    turns_redispatched: Counter
    turn_seconds: Histogram
    queue_seconds: Histogram
    first_token_seconds: Histogram
    inter_token_seconds: Histogram
    prompt_tokens: Counter
    completion_tokens: Counter
    avoided_tokens: Counter
    cross_adapter_tokens: Counter

    @classmethod
    def register(cls, registry: CollectorRegistry) -> "GatewayMetrics":
        """Labels that take few values have all their series from the start, at 0."""

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...] = SECONDS_BUCKETS) -> Histogram:
            return Histogram(name, text, ["model"], registry=registry, buckets=buckets)

        metrics = cls(
            turns=counter("icarus_turns", "Turns that ended.", "model", "outcome"),
            turns_running=Gauge("icarus_turns_running", "Turns under way.", ["model"], registry=registry),
            turns_placed=counter("icarus_turns_placed", "Attempts at turns, by where they were placed.", "plan"),
            turns_redispatched=counter(
                "icarus_redispatched_turns", "Attempts at turns that were given up for another worker.", "reason"
            ),
            turn_seconds=histogram("icarus_turn_seconds", "Arrival to the end of turns that ended as they should."),
            queue_seconds=histogram(
                "icarus_turn_queue_seconds", "Arrival until a decode worker had reserved room for the turn."
            ),
            first_token_seconds=histogram("icarus_time_to_first_token_seconds", "Arrival to the first token."),
            inter_token_seconds=histogram(
                "icarus_inter_token_latency_seconds",
                "Between two tokens of a turn; tokens that come together share the time since the last ones.",
                _TOKEN_SECONDS_BUCKETS,
            ),
            prompt_tokens=counter(
                "icarus_prompt_tokens", "Prompt tokens, by where their KV came from.", "model", "source"
            ),
            completion_tokens=counter("icarus_completion_tokens", "Tokens generated.", "model", "outcome"),
            avoided_tokens=counter(
                "icarus_encoder_tokens_avoided", "Prompt tokens that were not computed: local and remote.", "model"
            ),
            cross_adapter_tokens=counter(
                "icarus_cross_adapter_tokens",
                "Prompt tokens whose KV another specialist's turn wrote first.",
                *("written_under", "read_under"),
            ),
        )
        for plan in Plan:
            metrics.turns_placed.labels(plan)
        for reason in Redispatch:
            metrics.turns_redispatched.labels(reason)
        return metrics

    def expect(self, model: str) -> None:
        """Gives a model the series that its turns count on, at 0 where they are new: Prometheus sees increases only in
        a series that it has seen before, so the first failure would be lost on it."""
        for outcome in Outcome:
            self.turns.labels(model, outcome)
            self.completion_tokens.labels(model, outcome)
        for source in Source:
            self.prompt_tokens.labels(model, source)
        self.avoided_tokens.labels(model)
