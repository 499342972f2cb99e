"""A real gRPC server of `icarus.v1` that answers by script: what the client does is tested without a model.

The prompt decides: each of its token ids is answered as one delta, and a few texts ask for trouble (`TROUBLE`).
"""

import asyncio
import threading
from collections.abc import AsyncIterator
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


class ScriptedGateway:
    """The server in a thread of its own. `requests` holds what came in, `cancelled` the turn ids that were given up."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.cancelled: list[str] = []
        self.address = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "ScriptedGateway":
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(self, *exc_info: object) -> None:
        asyncio.run_coroutine_threadsafe(self._server.stop(0), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def last(self, kind: type) -> Any:
        """The latest request of a type."""
        return next(request for request in reversed(self.requests) if isinstance(request, kind))

    async def _start(self) -> None:
        self._server = grpc.aio.server(interceptors=(ErrorInterceptor(),))
        generation_service_pb2_grpc.add_GenerationServiceServicer_to_server(_Generation(self), self._server)
        session_service_pb2_grpc.add_SessionServiceServicer_to_server(_Sessions(self), self._server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Models(self), self._server)
        cluster_service_pb2_grpc.add_ClusterServiceServicer_to_server(_Cluster(self), self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()

    async def play(self, request: Any, prompt: list[int]) -> AsyncIterator[generation_pb2.TurnEvent]:
        """One delta a prompt token, then the end, as the request's text wants it."""
        text = request.content.text
        if text in TROUBLE:
            raise TROUBLE[text]
        if request.model == "missing":
            raise NotFoundError("no model 'missing'; there are base, alpha")
        try:
            for token_id in prompt:
                yield generation_pb2.TurnEvent(delta={"token_ids": [token_id], "text": f"<{token_id}>"})
            if text == "endless":
                await asyncio.sleep(60)
            if text == "late trouble":
                raise OverloadedError("no room any more")
        except (asyncio.CancelledError, GeneratorExit):
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
        self._gateway.requests.append(request)
        prompt = list(request.content.token_ids.ids) or [1, 2, 3]
        async for event in self._gateway.play(request, prompt):
            yield generation_service_pb2.GenerateResponse(event=event)


class _Sessions(session_service_pb2_grpc.SessionServiceServicer):
    def __init__(self, gateway: ScriptedGateway):
        self._gateway = gateway
        self._sessions: dict[str, session_service_pb2.Session] = {}

    def _find(self, request: Any) -> session_service_pb2.Session:
        self._gateway.requests.append(request)
        if request.session_id not in self._sessions:
            raise NotFoundError(f"no session {request.session_id!r}")
        return self._sessions[request.session_id]

    async def CreateSession(self, request: Any, context: Any) -> Any:
        self._gateway.requests.append(request)
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
        self._models = {"base": model_service_pb2.Model(name="base", is_base=True, worker_ids=["decode-0"])}

    async def ListModels(self, request: Any, context: Any) -> Any:
        return model_service_pb2.ListModelsResponse(models=self._models.values(), context_length=2048)

    async def LoadAdapter(self, request: Any, context: Any) -> Any:
        self._gateway.requests.append(request)
        model = model_service_pb2.Model(
            name=request.name, mode=request.mode, digest="d1", worker_ids=request.worker_ids
        )
        self._models[request.name] = model
        return model_service_pb2.LoadAdapterResponse(model=model)

    async def UnloadAdapter(self, request: Any, context: Any) -> Any:
        if self._models.pop(request.name, None) is None:
            raise NotFoundError(f"no adapter {request.name!r}")
        return model_service_pb2.UnloadAdapterResponse()


class _Cluster(cluster_service_pb2_grpc.ClusterServiceServicer):
    def __init__(self, gateway: ScriptedGateway):
        self._gateway = gateway

    async def GetCluster(self, request: Any, context: Any) -> Any:
        worker = cluster_service_pb2.Worker(worker_id="decode-0", role="decode", total_blocks=8, free_blocks=8)
        return cluster_service_pb2.GetClusterResponse(workers=[worker], block_size=16)
