"""*Transfers and workers*: what moves between the pools, and how each worker is."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from icarus_dashboards.page import Choice, Row, page
from icarus_dashboards.panels import Panel, Query, lines, quantiles

_INSTANCE = 'instance=~"$instance"'


def build() -> Dashboard:
    return page(
        "icarus-transfers-and-workers",
        "Icarus / Transfers and workers",
        "What moves between the workers' KV pools, and how each worker is.",
        Choice("instance", "icarus_kv_blocks"),
        [
            Row("Who is there", [_workers(), _scraped(), _heartbeats(), _engine_ages()]),
            Row("Transfers", [_bytes(), _speed(), _seconds(), _failures()]),
            Row("KV pools", [_blocks(), _fullness(), _indexed()]),
            Row("Steps", [_step_seconds(), _busy(), _rows(), _batch_size()]),
            Row("Models", [_written(), _adapters(), _adapter_loads()]),
        ],
    )


def _workers() -> Panel:
    return lines(
        "Workers known to the gateway",
        "ready: gets turns. draining: was told to stop, and ends what it has. left_out: registered, but silent, stuck "
        "or out of reach, so it gets none.",
        "short",
        Query("max by (role, state) (icarus_workers)", "{{role}} {{state}}"),
        stacked=True,
    )


def _heartbeats() -> Panel:
    return lines(
        "Age of the last heartbeat",
        "A worker that misses three heartbeats ([gateway] heartbeat_seconds) is left out.",
        "s",
        Query("max by (worker) (icarus_worker_heartbeat_age_seconds)", "{{worker}}"),
    )


def _engine_ages() -> Panel:
    return lines(
        "Age of the engine's last round",
        "It grows while a step runs, and does not stop when one hangs. Past [gateway] max_engine_age_seconds the "
        "worker gets no turns.",
        "s",
        Query(f"max by (instance) (icarus_engine_age_seconds{{{_INSTANCE}}})", "{{instance}}"),
    )


def _scraped() -> Panel:
    return lines(
        "Processes that answer",
        "1 where Prometheus reaches the process, 0 where it does not.",
        "short",
        Query('up{job=~"gateway|prefill|decode"}', "{{instance}}"),
    )


def _bytes() -> Panel:
    return lines(
        "KV read from other workers",
        "By the worker that reads.",
        "binBps",
        Query(
            f"sum by (instance) (rate(icarus_transfer_bytes_total{{{_INSTANCE}}}[$__rate_interval]))", "{{instance}}"
        ),
        stacked=True,
    )


def _speed() -> Panel:
    return lines(
        "Speed of a read",
        "Bytes by the time that reads took. Compare it with `icarus bench transfer` on the same machines: far less "
        "means that UCX fell back to TCP (a worker's log with UCX_PROTO_INFO=y tells).",
        "binBps",
        Query(
            f"sum by (instance) (rate(icarus_transfer_bytes_total{{{_INSTANCE}}}[$__rate_interval])) "
            f"/ sum by (instance) (rate(icarus_transfer_seconds_sum{{{_INSTANCE}}}[$__rate_interval]))",
            "{{instance}}",
        ),
    )


def _seconds() -> Panel:
    return lines(
        "Duration of a read",
        "From posting a read until its blocks are there. A read that takes longer than [transfer] read_timeout_seconds "
        "is given up.",
        "s",
        *quantiles("icarus_transfer_seconds", _INSTANCE),
    )


def _failures() -> Panel:
    return lines(
        "Reads that failed, by cause",
        "Turns go on: what could not be read is computed. gone: the block was evicted and the gateway did not know; "
        "harmless.",
        "suffix:/s",
        Query(
            f"sum by (cause) (rate(icarus_transfer_failures_total{{{_INSTANCE}}}[$__rate_interval]))",
            "{{cause}}",
        ),
    )


def _blocks() -> Panel:
    return lines(
        "Blocks by state",
        "used: by requests and leases. cached: kept for the next turn, given up when room is needed. quarantined: a "
        "read that was given up may still write there.",
        "short",
        Query(f"sum by (state) (icarus_kv_blocks{{{_INSTANCE}}})", "{{state}}"),
        stacked=True,
        width="third",
    )


def _fullness() -> Panel:
    return lines(
        "Pool in use, by worker",
        "Share of each pool that requests and leases hold. Near 1 requests wait or are preempted.",
        "percentunit",
        Query(
            f'sum by (instance) (icarus_kv_blocks{{state="used", {_INSTANCE}}}) '
            f"/ sum by (instance) (icarus_kv_blocks{{{_INSTANCE}}})",
            "{{instance}}",
        ),
        width="third",
    )


def _indexed() -> Panel:
    return lines(
        "Blocks that the gateway can find",
        "Names in the gateway's index. It should follow the cached and used blocks of all pools.",
        "short",
        Query("sum by (instance) (icarus_index_blocks)", "{{instance}}"),
        width="third",
    )


def _step_seconds() -> Panel:
    return lines(
        "Step time by kind of rows, P95",
        "encoder: prefill. paired: decode of shared specialists, both streams. single: of the base and of private "
        "specialists. read: the KV was there already. mixed: several kinds in one step.",
        "s",
        Query(
            "histogram_quantile(0.95, "
            f"sum by (le, kind) (rate(icarus_step_seconds_bucket{{{_INSTANCE}}}[$__rate_interval])))",
            "{{kind}}",
        ),
    )


def _busy() -> Panel:
    return lines(
        "Time spent in steps",
        "Share of each second that a worker computes. Near 1 it is saturated.",
        "percentunit",
        Query(
            f"sum by (instance) (rate(icarus_step_seconds_sum{{{_INSTANCE}}}[$__rate_interval]))",
            "{{instance}}",
        ),
    )


def _rows() -> Panel:
    return lines(
        "Rows computed, by kind",
        "Positions computed. encoder: prefill. paired: one token in both streams. single: one stream. read: the KV was "
        "there already.",
        "suffix:rows/s",
        Query(
            f"sum by (kind) (rate(icarus_step_rows_total{{{_INSTANCE}}}[$__rate_interval]))",
            "{{kind}}",
        ),
        stacked=True,
    )


def _batch_size() -> Panel:
    return lines(
        "Requests in a step",
        "Larger batches cost less for each token.",
        "short",
        Query(
            f"sum by (instance) (rate(icarus_batch_size_sum{{{_INSTANCE}}}[$__rate_interval])) "
            f"/ sum by (instance) (rate(icarus_batch_size_count{{{_INSTANCE}}}[$__rate_interval]))",
            "mean on {{instance}}",
        ),
    )


def _written() -> Panel:
    return lines(
        "KV written, by model",
        "Tokens whose KV was computed and stored, prompts and generated ones.",
        "suffix:tokens/s",
        Query(
            f"sum by (model) (rate(icarus_kv_tokens_written_total{{{_INSTANCE}}}[$__rate_interval]))",
            "{{model}}",
        ),
        stacked=True,
        width="third",
    )


def _adapters() -> Panel:
    return lines(
        "Adapters in memory",
        "Adapters whose weights are resident. Others are read again when a turn asks for them.",
        "short",
        Query(f"sum by (instance) (icarus_adapters_resident{{{_INSTANCE}}})", "{{instance}}"),
        width="third",
    )


def _adapter_loads() -> Panel:
    return lines(
        "Adapters loaded and evicted",
        "Evictions all the time: raise [worker] max_resident_adapters.",
        "suffix:/s",
        Query(
            f"sum by (event) (rate(icarus_adapter_loads_total{{{_INSTANCE}}}[$__rate_interval]))",
            "{{event}}",
        ),
        width="third",
    )
