"""Scripted workers. The gateway under test is the real one, over real gRPC."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import grpc.aio
import icarus_gateway.main
import pytest
from byte_model import make_model
from icarus_gateway.cluster.workers import WorkerTable
from icarus_gateway.main import build_servers, make_session_store, make_turn_runs
from icarus_gateway.sessions.store import SessionStore
from ports import free_address
from prometheus_client import CollectorRegistry

from icarus.config import Config, GatewaySection
from icarus.errors import NotFoundError, UnavailableError
from icarus.rpc import server as rpc_server
from icarus.rpc.channel import open_channel
from icarus.rpc.messages import PROTOCOL_VERSION
from icarus.rpc.server import Server, Service, make_server
from icarus.text.served_model import ServedModel
from icarus.v1 import (
    cluster_service_pb2_grpc,
    generation_service_pb2_grpc,
    model_service_pb2_grpc,
    session_service_pb2_grpc,
)
from icarus.worker.v1 import (
    adapter_service_pb2,
    adapter_service_pb2_grpc,
    block_service_pb2,
    block_service_pb2_grpc,
    debug_service_pb2,
    debug_service_pb2_grpc,
    decode_service_pb2,
    decode_service_pb2_grpc,
    prefill_service_pb2,
    prefill_service_pb2_grpc,
    registry_service_pb2,
    registry_service_pb2_grpc,
)


@pytest.fixture
def model() -> ServedModel:
    return make_model()


@pytest.fixture
def new_model() -> Callable[..., ServedModel]:
    return make_model


@dataclass
class WorkerScript:
    """What a scripted worker does; tests set the fields."""

    answer: list[int] = field(default_factory=list)
    """The output of every turn, from its first token; a resumed turn goes on inside it."""
    die_after: int | None = None
    """UNAVAILABLE once this many tokens of an attempt were sent."""
    die_at: int | None = None
    """UNAVAILABLE in place of this token of the output, in every attempt."""
    reserve_late: asyncio.Event | None = None
    """The room for a turn that waits for a prefill is there once this is set."""
    die_reserved: asyncio.Event | None = None
    """UNAVAILABLE while it waits for `staged`, once the event is set."""
    refusal: Exception | None = None
    stall_after: int | None = None
    pause_after: int | None = None
    """Waits for `go_on` once this many tokens of an attempt were sent."""
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    finish_lost: bool = False
    """UNAVAILABLE in place of DecodeFinished."""
    linger_seconds: float = 0.0
    """Between DecodeFinished and the end of the call."""
    num_open: int = 0
    """Decode calls that have not returned."""
    num_local_blocks: int = 0
    remote_tokens: int = 0
    """Of each prompt, read from others' caches."""
    prefill_error: Exception | None = None
    prefill_stalls: bool = False
    load_error: Exception | None = None
    load_stalls: bool = False
    load_answer_lost: bool = False
    """UNAVAILABLE once it has loaded."""
    pin_error: Exception | None = None
    unload_error: Exception | None = None
    digest: str = "digest"
    block_sequence: int = 0
    begun: list[decode_service_pb2.BeginTurn] = field(default_factory=list)
    staged: list[decode_service_pb2.PrefillStaged] = field(default_factory=list)
    prefilled: list[prefill_service_pb2.PrefillRequest] = field(default_factory=list)
    released_leases: list[str] = field(default_factory=list)
    loaded: dict[str, str] = field(default_factory=dict)
    load_requests: list[adapter_service_pb2.LoadAdapterRequest] = field(default_factory=list)
    pins: dict[str, bool] = field(default_factory=dict)
    refusals: dict[str, Exception] = field(default_factory=dict)
    """By the adapter's digest or mode."""
    finishes: int = 0
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    prefill_cancelled: asyncio.Event = field(default_factory=asyncio.Event)


class Decode(decode_service_pb2_grpc.DecodeServiceServicer):
    def __init__(self, script: WorkerScript):
        self.script = script

    async def Decode(self, request_iterator, context):
        script, finish, watching = self.script, asyncio.Event(), None
        begin = (await anext(request_iterator)).begin
        script.begun.append(begin)
        refusals = script.refusals.get(begin.adapter_digest) or script.refusals.get(begin.adapter_mode)
        if refusal := script.refusal or refusals:
            raise refusal
        script.num_open += 1
        try:
            if begin.await_prefill:
                if script.reserve_late:
                    await script.reserve_late.wait()
                yield decode_service_pb2.DecodeResponse(
                    reserved=decode_service_pb2.TurnReserved(num_local_blocks=script.num_local_blocks)
                )
                if script.die_reserved:
                    await script.die_reserved.wait()
                    raise UnavailableError("gone")
                request = await anext(request_iterator, None)
                if request is None:  # how a cancelled call may look to who is reading
                    script.cancelled.set()
                    return
                script.staged.append(request.staged)
            watching = asyncio.ensure_future(self.watch(request_iterator, finish))
            first = sent = begin.num_output_tokens
            if script.die_after != 0:
                yield decode_service_pb2.DecodeResponse(prompt=self.prompt(begin))
            for token in script.answer[first : begin.sampling.max_tokens]:
                if sent - first == script.die_after or sent == script.die_at:
                    raise UnavailableError("gone")
                if sent - first == script.pause_after:
                    await script.go_on.wait()
                if sent - first == script.stall_after:
                    await asyncio.sleep(60)
                sent += 1
                yield decode_service_pb2.DecodeResponse(tokens=decode_service_pb2.TokensGenerated(token_ids=[token]))
                await asyncio.sleep(0)
                if finish.is_set() or token in begin.sampling.stop_token_ids:
                    break
            if script.finish_lost:
                raise UnavailableError("gone")
            yield decode_service_pb2.DecodeResponse(finished=self.finished(begin, sent))
            if script.linger_seconds:
                await asyncio.sleep(script.linger_seconds)
        except (asyncio.CancelledError, GeneratorExit):  # the latter where a message was on its way
            script.cancelled.set()
            raise
        finally:
            script.num_open -= 1
            if watching:
                watching.cancel()

    async def watch(self, requests, finish):
        async for request in requests:
            assert request.HasField("finish")
            self.script.finishes += 1
            finish.set()

    def prompt(self, begin):
        return decode_service_pb2.PromptUsage(
            computed_tokens=len(begin.token_ids) - 2 - self.script.remote_tokens,
            local_tokens=2,
            remote_tokens=self.script.remote_tokens,
            written_under=[{"writer": "math", "tokens": 1}],
        )

    def finished(self, begin, sent):
        stopped = sent < begin.sampling.max_tokens
        return decode_service_pb2.DecodeFinished(
            reason="stop" if stopped else "length",
            kv_written_tokens=len(begin.token_ids) - 2 + sent,
            transfer_reads=1,
            transfer_bytes=100,
            block_sequence=self.script.block_sequence,
        )


class Blocks(block_service_pb2_grpc.BlockServiceServicer):
    def __init__(self, script: WorkerScript):
        self.script = script

    async def ReleaseLease(self, request, context):
        self.script.released_leases.append(request.lease_id)
        return block_service_pb2.ReleaseLeaseResponse()


class Prefill(prefill_service_pb2_grpc.PrefillServiceServicer):
    def __init__(self, script: WorkerScript):
        self.script = script

    async def Prefill(self, request, context):
        self.script.prefilled.append(request)
        if self.script.prefill_stalls:
            try:
                await asyncio.sleep(60)
            finally:
                self.script.prefill_cancelled.set()
        if self.script.prefill_error:
            raise self.script.prefill_error
        return prefill_service_pb2.PrefillResponse(
            grant={"lease_id": request.lease_id, "duration_seconds": 5, "first_block": request.first_block},
            num_cached_tokens=0,
            kv_written_tokens=1000,
            transfer_reads=2,
            transfer_bytes=20,
        )


class AdapterHost(adapter_service_pb2_grpc.AdapterServiceServicer):
    def __init__(self, script: WorkerScript):
        self.script = script

    async def LoadAdapter(self, request, context):
        if self.script.load_error:
            raise self.script.load_error
        self.script.load_requests.append(request)
        if self.script.load_stalls:
            await asyncio.sleep(60)
        self.script.loaded[request.name] = request.mode or "shared"
        mode = self.script.loaded[request.name]
        if self.script.load_answer_lost:
            raise UnavailableError("gone")
        return adapter_service_pb2.LoadAdapterResponse(digest=self.script.digest, mode=mode, rank=4)

    async def PinAdapter(self, request, context):
        if self.script.pin_error:
            raise self.script.pin_error
        self.script.pins[request.name] = request.pinned
        return adapter_service_pb2.PinAdapterResponse()

    async def UnloadAdapter(self, request, context):
        if self.script.unload_error:
            raise self.script.unload_error
        if self.script.loaded.pop(request.name, None) is None:
            raise NotFoundError(f"{request.name!r} is not loaded here")
        return adapter_service_pb2.UnloadAdapterResponse()


class Debug(debug_service_pb2_grpc.DebugServiceServicer):
    async def CheckIntegrity(self, request, context):
        assert request.skip_check
        return debug_service_pb2.CheckIntegrityResponse(total_blocks=10, free_blocks=7, used_blocks=3)


@dataclass
class FakeWorker:
    """A scripted peer that is registered with the gateway."""

    worker_id: str
    role: str
    script: WorkerScript
    server: Server
    registry: registry_service_pb2_grpc.RegistryServiceStub
    adapters: list[registry_service_pb2.Adapter]
    instance_id: str

    async def register(self, **changes):
        request = registry_service_pb2.RegisterRequest(
            worker_id=self.worker_id,
            instance_id=self.instance_id,
            role=self.role,
            address=self.server.address,
            protocol_version=PROTOCOL_VERSION,
            base_model="base",
            base_digest="b",
            cache_fingerprint="f",
            block_size=4,
            num_blocks=1000,
            context_length=4096,
            adapters=self.adapters,
        )
        for name, value in changes.items():
            setattr(request, name, value)
        return await self.registry.Register(request)

    async def leave(self):
        request = registry_service_pb2.DeregisterRequest(worker_id=self.worker_id, instance_id=self.instance_id)
        await self.registry.Deregister(request)

    async def beat(self, **fields):
        fields = {"instance_id": self.instance_id, **fields}
        await self.registry.Heartbeat(
            registry_service_pb2.HeartbeatRequest(worker_id=self.worker_id, adapters=self.adapters, **fields)
        )

    async def report(self, first_sequence, hashes):
        return await self.registry.ReportBlocks(
            registry_service_pb2.ReportBlocksRequest(
                worker_id=self.worker_id,
                instance_id=self.instance_id,
                first_sequence=first_sequence,
                changes=[registry_service_pb2.BlockChange(block_hash=block_hash) for block_hash in hashes],
            )
        )


@dataclass
class Cluster:
    """A running gateway and its scripted workers."""

    channel: grpc.aio.Channel
    worker_channel: grpc.aio.Channel
    """Where workers register: the same, unless they have an address of their own."""
    table: WorkerTable
    model: ServedModel
    metrics: CollectorRegistry
    store: SessionStore
    fakes: dict[str, FakeWorker] = field(default_factory=dict)

    def __post_init__(self):
        self.sessions = session_service_pb2_grpc.SessionServiceStub(self.channel)
        self.generation = generation_service_pb2_grpc.GenerationServiceStub(self.channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(self.channel)
        self.cluster = cluster_service_pb2_grpc.ClusterServiceStub(self.channel)
        self.registry = registry_service_pb2_grpc.RegistryServiceStub(self.worker_channel)

    async def add(self, worker_id: str, role: str = "decode", adapters: dict[str, str] | None = None, **script):
        """Starts a scripted worker and registers it. `adapters`: name -> mode."""
        fake_script = WorkerScript(**script)
        servicers = (*(kind(fake_script) for kind in (Decode, Prefill, Blocks, AdapterHost)), Debug())
        server = make_server("127.0.0.1:0", [*map(Service.of, servicers)])
        await server.start()
        loaded = [
            registry_service_pb2.Adapter(name=name, digest=name * 2, mode=mode, rank=4)
            for name, mode in (adapters or {}).items()
        ]
        fake = FakeWorker(worker_id, role, fake_script, server, self.registry, loaded, f"{worker_id}-1")
        await fake.register()
        self.fakes[worker_id] = fake
        return fake

    def silence(self, fake: FakeWorker, num_heartbeats: int = 20) -> None:
        """As if it had missed so many heartbeats; the default is a few more than a running turn bears."""
        missed_seconds = num_heartbeats * self.table.heartbeat_seconds
        self.table.instance(fake.worker_id, fake.instance_id).last_seen -= missed_seconds


@asynccontextmanager
async def start_cluster(
    model: ServedModel, clock: Callable[[], float] = time.monotonic, **settings
) -> AsyncIterator[Cluster]:
    """With the defaults no wait of the gateway runs out in a test. A `clock` that stands still keeps every worker live
    under a short `heartbeat_seconds`, but those that a test silences."""
    patient = {"heartbeat_seconds": 5.0, "report_wait_seconds": 60.0, "prefill_threshold_tokens": 1000}
    settings = {"address": "127.0.0.1:0", **patient, **settings}
    config = replace(Config(), gateway=GatewaySection(**settings))
    table = WorkerTable(model.name, config.gateway.heartbeat_seconds, config.gateway.max_engine_age_seconds, clock)
    registry = CollectorRegistry()
    store = make_session_store(config, model)
    servers = build_servers(config, model, table, store, make_turn_runs(config.gateway, store), registry)
    fakes: dict[str, FakeWorker] = {}
    for server in servers:
        await server.start()
    try:
        async with open_channel(servers[0].address) as channel, open_channel(servers[-1].address) as worker_channel:
            yield Cluster(channel, worker_channel, table, model, registry, store, fakes)
    finally:
        for server in servers:
            await server.drain(0)
        await store.close()
        await table.close()
        for fake in fakes.values():
            await fake.server.drain(0)


@pytest.fixture
async def cluster(model: ServedModel) -> AsyncIterator[Cluster]:
    async with start_cluster(model) as cluster:
        yield cluster


@pytest.fixture
def new_cluster() -> Callable[..., object]:
    return start_cluster


@dataclass
class Process:
    """A gateway that `serve` runs: its cluster has no table, metrics or store."""

    cluster: Cluster
    signalled: asyncio.Event
    """Set it to have it end."""
    serving: asyncio.Task[None]


@pytest.fixture
def new_process(model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    monkeypatch.setattr(icarus_gateway.main, "_load_model", lambda config: model)
    monkeypatch.setattr(rpc_server, "_keep_loaded_objects", lambda: None)

    @asynccontextmanager
    async def start(**settings) -> AsyncIterator[Process]:
        section = GatewaySection(address=free_address(), **settings)
        signalled = asyncio.Event()
        monkeypatch.setattr(rpc_server, "stop_signal", signalled.wait)
        serving = asyncio.create_task(icarus_gateway.main.serve(Config(gateway=section)))
        worker_address = section.worker_address or section.address
        async with open_channel(section.address) as channel, open_channel(worker_address) as worker_channel:
            await channel.channel_ready()
            cluster = Cluster(channel, worker_channel, table=None, model=model, metrics=None, store=None)
            try:
                yield Process(cluster, signalled, serving)
            finally:
                signalled.set()
                await asyncio.wait((serving,))
                for fake in cluster.fakes.values():
                    await fake.server.drain(0)
                await serving

    return start
