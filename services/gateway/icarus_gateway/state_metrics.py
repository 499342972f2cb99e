"""The gateway's state as metrics, read at each scrape on the event loop."""

from collections import Counter

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from icarus.cache.index import PrefixIndex
from icarus.types import Role
from icarus_gateway.cluster.worker import Worker
from icarus_gateway.cluster.workers import WorkerTable
from icarus_gateway.conversations import Conversations
from icarus_gateway.sessions.store import SessionStore


class GatewayState:
    """What `LoopCollector` reads."""

    def __init__(self, workers: WorkerTable, index: PrefixIndex, store: SessionStore, conversations: Conversations):
        self._workers = workers
        self._index = index
        self._store = store
        self._conversations = conversations

    async def read(self) -> list[Metric]:
        return [self._worker_counts(), self._heartbeat_ages(), self._blocks(), *self._sessions()]

    def _worker_counts(self) -> Metric:
        text = (
            "Workers that registered; draining are those that end, left out those whose heartbeats or engine are late, "
            "or that failed a call."
        )
        family = GaugeMetricFamily("icarus_workers", text, labels=["role", "state"])
        counts = Counter((worker.info.role, self._state_of(worker)) for worker in self._workers.known())
        for role in Role:
            for state in ("ready", "draining", "left_out"):
                family.add_metric([role, state], counts[role, state])
        return family

    def _state_of(self, worker: Worker) -> str:
        if self._workers.is_live(worker):
            return "ready"
        return "draining" if self._workers.is_draining(worker) else "left_out"

    def _heartbeat_ages(self) -> Metric:
        text = "Since a worker was last heard of."
        family = GaugeMetricFamily("icarus_worker_heartbeat_age_seconds", text, labels=["worker"])
        for worker in self._workers.known():
            family.add_metric([worker.worker_id], self._workers.silent_seconds(worker))
        return family

    def _blocks(self) -> Metric:
        return GaugeMetricFamily("icarus_index_blocks", "Different blocks that some worker holds.", self._index.size)

    def _sessions(self) -> list[Metric]:
        counts = self._store.counts()
        events = CounterMetricFamily("icarus_session_events", "Sessions made and ended.", labels=["event"])
        events.add_metric(["created"], counts.created)
        events.add_metric(["forked"], self._conversations.num_forked)
        events.add_metric(["expired"], counts.expired)
        events.add_metric(["deleted"], counts.deleted)
        events.add_metric(["displaced"], counts.displaced)
        events.add_metric(["refused"], counts.refused)
        live = GaugeMetricFamily("icarus_sessions", "Sessions that are kept.", counts.live)
        limit = GaugeMetricFamily("icarus_sessions_limit", "Most sessions that are kept.", counts.limit)
        text = "Changes of sessions that the session file did not take."
        errors = CounterMetricFamily("icarus_session_store_errors", text, counts.write_errors)
        return [live, limit, events, errors]
