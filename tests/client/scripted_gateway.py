"""A real gRPC server of `icarus.v1` that answers by script: what the client does is tested without a model.

The prompt decides: each of its token ids is answered as one delta, and a few texts ask for trouble (`TROUBLE`), time
("endless", "slow", "late", "committing"), or text after the last token ("held back"). Turns are known by their id and
can be resumed, as in the real one.
"""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc.aio

from icarus.errors import ConflictError, IcarusError, InvalidInputError, NotFoundError, OverloadedError
from icarus.rpc.status import ErrorInterceptor
from icarus.v1 import (
    cluster_service_pb2,
    cluster_service_pb2_grpc,
    generation_pb2,
    generation_service_pb2,
    generation_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    session_service_pb2,
    session_service_pb2_grpc,
)

TROUBLE: dict[str, IcarusError] = {
    "invalid": InvalidInputError("max_tokens is 0; ask for at least 1"),
    "overloaded": OverloadedError("32 turns wait; try again", retry_delay_seconds=2.5),
    "conflict": ConflictError("another turn of the session is under way"),
}

_PATIENT_WITH_PINGS = (
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 100),
    ("grpc.http2.max_ping_strikes", 0),
)


class _Turn:
    """A turn under way or done, in a task of its own."""

    def __init__(self, script: AsyncIterator[generation_pb2.TurnEvent], grace_seconds: float):
        self.events: list[generation_pb2.TurnEvent] = []
        self.error: BaseException | None = None
        self.resumable = False
        self.num_watchers = 0
        self._grace_seconds = grace_seconds
        self._grace: asyncio.TimerHandle | None = None
        self._news = asyncio.Event()
        self.task = asyncio.ensure_future(self._run(script))

    async def _run(self, script: AsyncIterator[generation_pb2.TurnEvent]) -> None:
        try:
            async for event in script:
                self.events.append(event)
                self._tell()
        except IcarusError as error:
            self.error = error
        finally:
            asyncio.get_running_loop().call_soon(self._tell)

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def watch(self, resume_from: int, resumable: bool) -> AsyncIterator[generation_pb2.TurnEvent]:
        """Events after the first `resume_from` deltas (of one token each)."""
        self.num_watchers += 1
        self.resumable |= resumable
        if self._grace is not None:
            self._grace.cancel()
        try:
            num_sent = resume_from
            while num_sent < len(self.events) or not self.task.done():
                if num_sent == len(self.events):
                    await self._news.wait()
                    continue
                yield self.events[num_sent]
                num_sent += 1
            if self.error is not None:
                raise self.error
        finally:
            self.num_watchers -= 1
            if not self.num_watchers:
                seconds = self._grace_seconds if self.resumable else 0.0
                self._grace = asyncio.get_running_loop().call_later(seconds, self.task.cancel)


class _Recorder(grpc.aio.ServerInterceptor):
    def __init__(self, calls: list[tuple[str, dict[str, Any]]]):
        self._calls = calls

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        method = handler_call_details.method.rpartition("/")[2]
        self._calls.append((method, dict(handler_call_details.invocation_metadata)))
        return await continuation(handler_call_details)


class ScriptedGateway:
    """The server in a thread of its own. `requests` holds what came in, `calls` each call's method and metadata,
    `cancelled` the turn ids that were given up.

    The next calls fail with `failures`, in order. "slow" turns take `pause_seconds` before each token but the first. A
    resumable turn goes on for `grace_seconds` without a listener.
    """

    def __init__(self, address: str = "127.0.0.1:0", credentials: grpc.ServerCredentials | None = None):
        self.requests: list[Any] = []
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.cancelled: list[str] = []
        self.failures: list[IcarusError] = []
        self.pause_seconds = 0.05
        self.grace_seconds = 60.0
        base = model_service_pb2.Model(
            name="base", is_base=True, worker_ids=["decode-0"], resident_worker_ids=["decode-0"]
        )
        self.models = {"base": base}
        self._turns: dict[str, _Turn] = {}
        self.address = address
        self._credentials = credentials
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "ScriptedGateway":
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(self, *exc_info: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def last(self, kind: type) -> Any:
        """The latest request of a type."""
        return next(request for request in reversed(self.requests) if isinstance(request, kind))

    def load(self, name: str) -> None:
        """Adds an adapter before anybody asks."""
        self.models[name] = model_service_pb2.Model(name=name, worker_ids=["decode-0"])

    def forget(self, turn_id: str) -> None:
        """What a restart does to a turn."""
        self._loop.call_soon_threadsafe(self._turns.pop(turn_id).task.cancel)

    async def _start(self) -> None:
        interceptors = (_Recorder(self.calls), ErrorInterceptor())
        self._server = grpc.aio.server(interceptors=interceptors, options=_PATIENT_WITH_PINGS)
        generation_service_pb2_grpc.add_GenerationServiceServicer_to_server(_Generation(self), self._server)
        session_service_pb2_grpc.add_SessionServiceServicer_to_server(_Sessions(self), self._server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Models(self), self._server)
        cluster_service_pb2_grpc.add_ClusterServiceServicer_to_server(_Cluster(self), self._server)
        if self._credentials is None:
            self.address = f"127.0.0.1:{self._server.add_insecure_port(self.address)}"
        else:
            self._server.add_secure_port(self.address, self._credentials)
        await self._server.start()

    async def _stop(self) -> None:
        await self._server.stop(0)
        for turn in self._turns.values():
            turn.task.cancel()
        await asyncio.gather(*(turn.task for turn in self._turns.values()), return_exceptions=True)

    def receive(self, request: Any) -> None:
        """Every call begins here."""
        self.requests.append(request)
        if self.failures:
            raise self.failures.pop(0)

    async def play(self, request: Any, prompt: list[int]) -> AsyncIterator[generation_pb2.TurnEvent]:
        """The turn of this id from `resume_from` on; a new one if there is none."""
        turn = self._turns.get(request.turn_id)
        if turn is None or turn.error is not None or turn.task.cancelled():
            if request.resume_from:
                raise NotFoundError(f"turn {request.turn_id!r} is not known")
            turn = self._turns[request.turn_id] = _Turn(self._script(request, prompt), self.grace_seconds)
        async for event in turn.watch(request.resume_from, request.resumable):
            yield event

    @property
    def turn_ids(self) -> tuple[str, ...]:
        """Of the turns that have begun."""
        return tuple(self._turns)

    def has_finished(self, turn_id: str) -> bool:
        return any(event.HasField("finished") for event in self._turns[turn_id].events)

    async def cancel(self, turn_id: str) -> Any:
        """How the turn had finished before, if it had."""
        if (turn := self._turns.get(turn_id)) is None:
            return None
        turn.task.cancel()
        await asyncio.wait((turn.task,))
        return next((event.finished for event in turn.events if event.HasField("finished")), None)

    async def _script(self, request: Any, prompt: list[int]) -> AsyncIterator[generation_pb2.TurnEvent]:
        """One delta a prompt token, then the end, as the request's text wants it."""
        text = request.content.text
        if text in TROUBLE:
            raise TROUBLE[text]
        if request.model == "missing":
            raise NotFoundError("no model 'missing'; there are base, alpha")
        try:
            for i, token_id in enumerate(prompt):
                if text == "late" or (text in ("slow", "slow trouble") and i):
                    await asyncio.sleep(self.pause_seconds)
                yield generation_pb2.TurnEvent(delta={"token_ids": [token_id], "text": f"<{token_id}>"})
            if text == "held back":
                yield generation_pb2.TurnEvent(delta={"text": "."})
                await asyncio.sleep(self.pause_seconds)
            if text == "endless":
                await asyncio.sleep(60)
            if text == "committing":  # no cancellation stops a turn there
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(60)
            if text in ("late trouble", "slow trouble"):
                raise OverloadedError("no room any more")
        except asyncio.CancelledError:
            self.cancelled.append(request.turn_id)
            raise
        if text != "cut":
            usage = {
                "prompt_tokens": len(prompt),
                "completion_tokens": len(prompt),
                "computed_tokens": 1,
                "remote_tokens": 2,
                "kv_written_tokens": 5,
            }
            yield generation_pb2.TurnEvent(
                finished={
                    "finish_reason": generation_pb2.FINISH_REASON_LENGTH,
                    "usage": usage,
                    "route": {"decode_worker": "decode-0"},
                    "seed": request.sampling.seed,
                }
            )


class _Generation(generation_service_pb2_grpc.GenerationServiceServicer):
    def __init__(self, gateway: ScriptedGateway):
        self._gateway = gateway

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self._gateway.receive(request)
        prompt = list(request.content.token_ids.ids) or [1, 2, 3]
        async for event in self._gateway.play(request, prompt):
            yield generation_service_pb2.GenerateResponse(event=event)

    async def CancelTurn(self, request: Any, context: Any) -> Any:
        return generation_service_pb2.CancelTurnResponse(finished=await self._gateway.cancel(request.turn_id))


class _Sessions(session_service_pb2_grpc.SessionServiceServicer):
    def __init__(self, gateway: ScriptedGateway):
        self._gateway = gateway
        self._sessions: dict[str, session_service_pb2.Session] = {}

    def _find(self, request: Any) -> session_service_pb2.Session:
        self._gateway.receive(request)
        if request.session_id not in self._sessions:
            raise NotFoundError(f"no session {request.session_id!r}")
        return self._sessions[request.session_id]

    async def CreateSession(self, request: Any, context: Any) -> Any:
        self._gateway.receive(request)
        session = session_service_pb2.Session(session_id=f"s{len(self._sessions)}")
        session.token_ids.extend(request.content.token_ids.ids)
        self._sessions[session.session_id] = session
        return session_service_pb2.CreateSessionResponse(session=session)

    async def AppendContent(self, request: Any, context: Any) -> Any:
        session = self._find(request)
        session.token_ids.extend(request.content.token_ids.ids)
        return session_service_pb2.AppendContentResponse(
            num_appended_tokens=len(request.content.token_ids.ids), num_tokens=len(session.token_ids)
        )

    async def GenerateTurn(self, request: Any, context: Any) -> AsyncIterator[Any]:
        session = self._find(request)
        async for event in self._gateway.play(request, list(session.token_ids) or [7]):
            yield session_service_pb2.GenerateTurnResponse(event=event)
        session.num_turns += 1

    async def GetSession(self, request: Any, context: Any) -> Any:
        return session_service_pb2.GetSessionResponse(session=self._find(request))

    async def DeleteSession(self, request: Any, context: Any) -> Any:
        del self._sessions[self._find(request).session_id]
        return session_service_pb2.DeleteSessionResponse()


class _Models(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, gateway: ScriptedGateway):
        self._gateway = gateway

    async def ListModels(self, request: Any, context: Any) -> Any:
        self._gateway.receive(request)
        return model_service_pb2.ListModelsResponse(models=self._gateway.models.values(), context_length=2048)

    async def LoadAdapter(self, request: Any, context: Any) -> Any:
        self._gateway.receive(request)
        model = model_service_pb2.Model(
            name=request.name, mode=request.mode, digest="d1", worker_ids=request.worker_ids, pinned=request.pin
        )
        self._gateway.models[request.name] = model
        return model_service_pb2.LoadAdapterResponse(model=model)

    async def PinAdapter(self, request: Any, context: Any) -> Any:
        self._gateway.receive(request)
        if request.name not in self._gateway.models:
            raise NotFoundError(f"no adapter {request.name!r}")
        self._gateway.models[request.name].pinned = request.pinned
        return model_service_pb2.PinAdapterResponse()

    async def UnloadAdapter(self, request: Any, context: Any) -> Any:
        if self._gateway.models.pop(request.name, None) is None:
            raise NotFoundError(f"no adapter {request.name!r}")
        return model_service_pb2.UnloadAdapterResponse()


class _Cluster(cluster_service_pb2_grpc.ClusterServiceServicer):
    def __init__(self, gateway: ScriptedGateway):
        self._gateway = gateway

    async def GetCluster(self, request: Any, context: Any) -> Any:
        worker = cluster_service_pb2.Worker(worker_id="decode-0", role="decode", total_blocks=8, free_blocks=8)
        lost = cluster_service_pb2.LeftOutWorker(worker_id="prefill-0", role="prefill", address="b:1", silent_seconds=4)
        ends = cluster_service_pb2.LeftOutWorker(worker_id="decode-1", role="decode", address="c:1", draining=True)
        return cluster_service_pb2.GetClusterResponse(workers=[worker], block_size=16, left_out=[ends, lost])
