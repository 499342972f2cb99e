"""*Serving*: what callers get. Turns, tokens, latencies, queues, errors."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from icarus_dashboards.page import Choice, Row, page
from icarus_dashboards.panels import Panel, Query, lines, number, quantiles

_MODEL = 'model=~"$model"'


def build() -> Dashboard:
    return page(
        "icarus-serving",
        "Icarus / Serving",
        "What callers get: how many turns, how fast, and what waits or fails.",
        Choice("model", "icarus_turns_total"),
        [
            Row("Now", [_turns_now(), _tokens_now(), _first_token_now(), _sessions_now()]),
            Row("Turns and tokens", [_turns(), _running_turns(), _tokens_out(), _tokens_in()]),
            Row("Latency", [_first_token(), _between_tokens(), _first_token_by_model(), _turn_seconds()]),
            Row("Queues", [_turn_queue(), _request_queue(), _requests(), _preemptions()]),
            Row("Placement and sessions", [_placed(), _redispatched(), _sessions()]),
            Row("RPCs", [_rpcs(), _rpc_errors(), _rpc_seconds()]),
        ],
    )


def _turns_now() -> Panel:
    return number(
        "Turns running",
        "Turns that the gateway has open now.",
        "short",
        f"sum(icarus_turns_running{{{_MODEL}}})",
    )


def _tokens_now() -> Panel:
    return number(
        "Tokens generated",
        "In the time shown.",
        "short",
        f"sum(increase(icarus_completion_tokens_total{{{_MODEL}}}[$__range]))",
    )


def _first_token_now() -> Panel:
    return number(
        "Time to first token, P95",
        "Nineteen of twenty turns in the time shown had their first token within this.",
        "s",
        "histogram_quantile(0.95, "
        f"sum by (le) (increase(icarus_time_to_first_token_seconds_bucket{{{_MODEL}}}[$__range])))",
    )


def _sessions_now() -> Panel:
    return number("Sessions", "Conversations that the gateway holds now.", "short", "sum(icarus_sessions)")


def _turns() -> Panel:
    return lines(
        "Turns by outcome",
        "stop and length are the good ends. refused: the caller's mistake. overloaded: no room. cancelled: the caller "
        "went away. failed: ours to explain.",
        "suffix:turns/s",
        Query(f"sum by (outcome) (rate(icarus_turns_total{{{_MODEL}}}[$__rate_interval]))", "{{outcome}}"),
        stacked=True,
    )


def _running_turns() -> Panel:
    return lines(
        "Turns running, by model",
        "Turns that the gateway has open. A line that never falls is a turn that hangs.",
        "short",
        Query(f"sum by (model) (icarus_turns_running{{{_MODEL}}})", "{{model}}"),
        stacked=True,
    )


def _tokens_out() -> Panel:
    return lines(
        "Tokens generated, by model",
        "Output tokens a second.",
        "suffix:tokens/s",
        Query(f"sum by (model) (rate(icarus_completion_tokens_total{{{_MODEL}}}[$__rate_interval]))", "{{model}}"),
        stacked=True,
    )


def _tokens_in() -> Panel:
    return lines(
        "Prompt tokens, by model",
        "Prompt tokens of ended turns a second, cached ones included.",
        "suffix:tokens/s",
        Query(f"sum by (model) (rate(icarus_prompt_tokens_total{{{_MODEL}}}[$__rate_interval]))", "{{model}}"),
        stacked=True,
    )


def _first_token() -> Panel:
    return lines(
        "Time to first token",
        "From the turn's arrival at the gateway to its first token there: queue, reading cached blocks, prefill, one "
        "step.",
        "s",
        *quantiles("icarus_time_to_first_token_seconds", _MODEL),
    )


def _between_tokens() -> Panel:
    return lines(
        "Time between tokens",
        "What a reader feels while the text runs. It grows with the batch, and with prefill chunks between the steps.",
        "s",
        *quantiles("icarus_inter_token_latency_seconds", _MODEL),
    )


def _first_token_by_model() -> Panel:
    return lines(
        "Time to first token by model, P95",
        "A model that stands out reuses less, is not resident, or has longer prompts.",
        "s",
        Query(
            "histogram_quantile(0.95, sum by (le, model) "
            f"(rate(icarus_time_to_first_token_seconds_bucket{{{_MODEL}}}[$__rate_interval])))",
            "{{model}}",
        ),
    )


def _turn_seconds() -> Panel:
    return lines(
        "Whole turns",
        "From arrival to the last token, of turns that ended with stop or length.",
        "s",
        *quantiles("icarus_turn_seconds", _MODEL),
    )


def _turn_queue() -> Panel:
    return lines(
        "Wait for a decode worker",
        "From the turn's arrival at the gateway until a decode worker has reserved room for it.",
        "s",
        *quantiles("icarus_turn_queue_seconds", _MODEL),
    )


def _request_queue() -> Panel:
    return lines(
        "Wait for admission on the workers",
        "From a request's arrival on a worker, prefill or decode, until it has its blocks. All models.",
        "s",
        *quantiles("icarus_request_queue_seconds"),
    )


def _requests() -> Panel:
    return lines(
        "Requests on the workers",
        "running: they hold blocks. waiting: no room yet; past [engine] max_waiting more are refused.",
        "short",
        Query("sum by (instance) (icarus_requests_running)", "running on {{instance}}"),
        Query("sum by (instance) (icarus_requests_waiting)", "waiting on {{instance}}"),
    )


def _preemptions() -> Panel:
    return lines(
        "Preemptions",
        "Requests that gave their blocks up because the pool was full, and start over. More than a few: fewer running "
        "requests or a larger pool.",
        "suffix:/s",
        Query("sum by (instance) (rate(icarus_preemptions_total[$__rate_interval]))", "{{instance}}"),
    )


def _placed() -> Panel:
    return lines(
        "Turns by plan",
        "decode_only: little was uncached, or there was no prefill worker. prefill: a prefill worker did most of it.",
        "suffix:turns/s",
        Query("sum by (plan) (rate(icarus_turns_placed_total[$__rate_interval]))", "{{plan}}"),
        width="third",
    )


def _redispatched() -> Panel:
    return lines(
        "Turns moved to another worker",
        "Attempts given up for another worker. lost: it could not be reached. overloaded: it had no room. adapter: its "
        "weights were gone. The caller notices nothing but the delay.",
        "suffix:turns/s",
        Query("sum by (reason) (rate(icarus_redispatched_turns_total[$__rate_interval]))", "{{reason}}"),
        width="third",
    )


def _sessions() -> Panel:
    return lines(
        "Sessions made and ended",
        "Conversations made and ended. Many expired: callers forget to delete them ([gateway] session_ttl_seconds).",
        "suffix:/s",
        Query("sum by (event) (rate(icarus_session_events_total[$__rate_interval]))", "{{event}}"),
        width="third",
    )


def _rpcs() -> Panel:
    return lines(
        "RPCs by status",
        "All calls of all services.",
        "reqps",
        Query("sum by (status) (rate(icarus_rpcs_total[$__rate_interval]))", "{{status}}"),
        stacked=True,
        width="third",
    )


def _rpc_errors() -> Panel:
    return lines(
        "RPC errors by method",
        "Calls that did not end in OK. INVALID_ARGUMENT and NOT_FOUND are the caller's; RESOURCE_EXHAUSTED is full; "
        "UNAVAILABLE and INTERNAL are ours.",
        "reqps",
        Query(
            'sum by (method, status) (rate(icarus_rpcs_total{status!="OK"}[$__rate_interval])) > 0',
            "{{method}} {{status}}",
        ),
        width="third",
    )


def _rpc_seconds() -> Panel:
    return lines(
        "RPC time by method, P95",
        "Streams count until they end, so a turn's call takes as long as its text.",
        "s",
        Query(
            "histogram_quantile(0.95, sum by (le, method) (rate(icarus_rpc_seconds_bucket[$__rate_interval])))",
            "{{method}}",
        ),
        width="third",
    )
