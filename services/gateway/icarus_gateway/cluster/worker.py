"""One worker, as the gateway knows it: what it is, how it is, and what it has to do."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from icarus.types import AdapterInfo, Role, WorkerId
from icarus_gateway.cluster.worker_connection import WorkerConnection


@dataclass(frozen=True)
class WorkerInfo:
    """What a worker says of itself when it registers."""

    worker_id: WorkerId
    instance_id: str
    role: Role
    address: str
    base_model: str
    base_digest: str
    cache_fingerprint: str
    block_size: int
    num_blocks: int
    context_length: int


@dataclass(frozen=True)
class Heartbeat:
    """How a worker is."""

    engine_age_seconds: float = 0.0
    num_requests: int = 0
    """Running and waiting."""
    available_blocks: int | None = None
    """None before the first one."""
    draining: bool = False
    """It ends what it has and takes nothing new."""


@dataclass
class Worker:
    """One instance of a worker. A restart makes a new one."""

    info: WorkerInfo
    connection: WorkerConnection
    adapters: Mapping[str, AdapterInfo]
    last_seen: float
    adapters_revision: int = 0
    """Of the list above, by the worker's own count."""
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    failed: bool = False
    """A call did not reach it; cleared by its next heartbeat."""
    heard: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by each heartbeat."""
    num_assigned: int = 0
    """Turns that this gateway has on it now."""
    peak_assigned: int = 0
    """The most turns that this gateway had on it at once since its last heartbeat."""
    num_foreign: int = 0
    """Requests of others: what its last heartbeat said, less what this gateway may have had on it when it was sent: a
    heartbeat that crosses the end of a turn must not count it as somebody else's."""

    @property
    def worker_id(self) -> WorkerId:
        return self.info.worker_id

    def take_heartbeat(self, heartbeat: Heartbeat, now: float) -> None:
        self.last_seen = now
        self.failed = False
        self.heartbeat = heartbeat
        self.num_foreign = max(0, heartbeat.num_requests - self.peak_assigned)
        self.peak_assigned = self.num_assigned
        self.heard.set()

    def learn_adapters(self, adapters: Iterable[AdapterInfo], revision: int) -> None:
        """Takes the worker's list, unless it is from before what the worker has answered since: a heartbeat may cross
        an answer."""
        if revision >= self.adapters_revision:
            self.adapters, self.adapters_revision = {adapter.name: adapter for adapter in adapters}, revision

    def learn_adapter(self, info: AdapterInfo, revision: int) -> None:
        """Takes what the worker answered of one adapter. Answers to calls of different names may cross, so an older
        one counts too; where it is wrong by then, the next heartbeat says so."""
        self.adapters = {**self.adapters, info.name: info}
        self.adapters_revision = max(self.adapters_revision, revision)

    def learn_unloaded(self, name: str, revision: int) -> None:
        """Takes the worker's word that it has dropped an adapter."""
        self.adapters = {other: info for other, info in self.adapters.items() if other != name}
        self.adapters_revision = max(self.adapters_revision, revision)

    @property
    def load(self) -> int:
        return self.num_assigned + self.num_foreign

    @property
    def available_blocks(self) -> int:
        """Free or evictable: all of a worker that has not said yet."""
        told = self.heartbeat.available_blocks
        return self.info.num_blocks if told is None else told
