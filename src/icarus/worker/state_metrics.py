"""A worker's state as metrics, read at each scrape on the event loop. The engine answers between two steps."""

import asyncio
from contextlib import suppress

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from icarus.engine.engine import Engine
from icarus.engine.state import EngineState
from icarus.errors import UnavailableError
from icarus.rpc.model_labels import ModelLabels
from icarus.worker.fetch_record import FetchFailure
from icarus.worker.worker import Worker

_ENGINE_SECONDS = 1.0
"""A scrape waits this long for a step to end; then the engine's state is that of the last scrape."""


class WorkerState:
    """What `LoopCollector` reads."""

    def __init__(self, worker: Worker):
        self._worker = worker
        self._models = ModelLabels(worker.identity.base_model)
        self._engine_state: EngineState | None = None
        self._asked: asyncio.Future[EngineState] | None = None

    async def read(self) -> list[Metric]:
        state = await self._engine()
        engine = [] if state is None else [*_blocks(state), *self._kv(state), *self._leases(state), *_requests(state)]
        return [*self._identity(), *engine, *self._transfers(), *self._adapters()]

    async def _engine(self) -> EngineState | None:
        """None before the first answer, the last one once it has failed. A hung engine has one question waiting,
        however many scrapes."""
        if self._asked is None or self._asked.done():
            self._asked = asyncio.wrap_future(self._worker.engine.post(Engine.state))
        asked = self._asked
        await asyncio.wait((asked,), timeout=_ENGINE_SECONDS)
        if asked.done():
            with suppress(UnavailableError):
                self._engine_state = asked.result()
        return self._engine_state

    def _identity(self) -> list[Metric]:
        identity = self._worker.identity
        info = GaugeMetricFamily("icarus_worker_info", "Always 1.", labels=["role", "worker", "model"])
        info.add_metric([identity.role, identity.worker_id, identity.base_model], 1)
        age = self._worker.engine.age_seconds
        return [
            info,
            GaugeMetricFamily("icarus_engine_age_seconds", "Since the engine last came round its loop.", age),
            GaugeMetricFamily("icarus_kv_block_bytes", "Bytes of a block, all layers.", identity.block_bytes),
            GaugeMetricFamily("icarus_kv_block_tokens", "Tokens of a block.", identity.block_size),
        ]

    def _kv(self, state: EngineState) -> list[Metric]:
        written = CounterMetricFamily(
            "icarus_kv_tokens_written", "KV positions computed, by the model whose turn it was.", labels=["model"]
        )
        totals: dict[str, int] = {}
        for writer, count in state.kv_written_by.items():
            label = self._models.label(writer)
            totals[label] = totals.get(label, 0) + count
        for label, count in totals.items():
            written.add_metric([label], count)
        evictions = CounterMetricFamily("icarus_kv_evictions", "Cached blocks that gave way.", state.evicted_blocks)
        return [written, evictions]

    def _leases(self, state: EngineState) -> list[Metric]:
        text = "Leases of this worker's blocks by what became of them; and of others' that lapsed while it read."
        events = CounterMetricFamily("icarus_leases", text, labels=["event"])
        events.add_metric(["granted"], state.leases_granted)
        events.add_metric(["released"], state.leases_released)
        events.add_metric(["expired"], state.leases_expired)
        events.add_metric(["lapsed_on_read"], self._worker.fetches.failures[FetchFailure.LAPSED])
        return [
            events,
            GaugeMetricFamily("icarus_leases_held", "Leases that readers hold now.", state.leases_held),
            GaugeMetricFamily("icarus_leased_blocks", "Blocks under lease now.", state.leased_blocks),
        ]

    def _transfers(self) -> list[Metric]:
        transfer, text = self._worker.transfer, "Sources that gave nothing, so that blocks were computed."
        failures = CounterMetricFamily("icarus_transfer_failures", text, labels=["cause"])
        for cause in FetchFailure:
            failures.add_metric([cause], self._worker.fetches.failures[cause])
        blocks = transfer.bytes_read // self._worker.identity.block_bytes
        return [
            failures,
            CounterMetricFamily("icarus_transfer_bytes", "Bytes read from other workers.", transfer.bytes_read),
            CounterMetricFamily("icarus_transfer_blocks", "Blocks read from other workers.", blocks),
        ]

    def _adapters(self) -> list[Metric]:
        counts = self._worker.adapters.counts
        events = CounterMetricFamily("icarus_adapter_loads", "Weights put into memory and out.", labels=["event"])
        events.add_metric(["loaded"], counts.loaded)
        events.add_metric(["evicted"], counts.evicted)
        events.add_metric(["unloaded"], counts.unloaded)
        resident = sum(adapter.resident for adapter in self._worker.adapters.list())
        return [events, GaugeMetricFamily("icarus_adapters_resident", "Adapters in memory.", resident)]


def _blocks(state: EngineState) -> list[Metric]:
    family = GaugeMetricFamily("icarus_kv_blocks", "Blocks of the pool by state; they sum to it.", labels=["state"])
    for name in ("free", "cached", "used", "quarantined"):
        family.add_metric([name], getattr(state.pool, name))
    text = "Blocks that caches of each specialist's own would take for what is used or cached."
    return [family, GaugeMetricFamily("icarus_kv_private_blocks", text, state.private_blocks)]


def _requests(state: EngineState) -> list[Metric]:
    return [
        GaugeMetricFamily("icarus_requests_running", "Requests that hold blocks.", state.running_requests),
        GaugeMetricFamily("icarus_requests_waiting", "Requests that wait for room.", state.waiting_requests),
        CounterMetricFamily("icarus_preemptions", "Requests that gave up their blocks for others.", state.preemptions),
    ]
