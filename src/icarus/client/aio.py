"""The client for asyncio. `sync.py` is the same for threads."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import Any, Self, Unpack

import grpc.aio
from grpc.aio import EOF  # pyright: ignore[reportAttributeAccessIssue]  # its stubs lack it

from icarus.client import messages as m
from icarus.client.connection import (
    DEFAULT_ADDRESS,
    DEFAULT_KEEPALIVE_SECONDS,
    FAREWELL_SECONDS,
    Stubs,
    channel_options,
)
from icarus.client.results import Appended, Cluster, Delta, Model, ModelList, SessionState, SessionSummary, TurnResult
from icarus.client.retry import DEFAULT_RETRY, Attempts, RetryPolicy
from icarus.client.turn import Abandon, OpenCall, TurnRecord
from icarus.errors import IcarusError
from icarus.rpc.status import error_from_rpc
from icarus.tracing import Metadata
from icarus.types import DEFAULT_TENANT, AdapterMode
from icarus.v1 import cluster_service_pb2 as cluster_pb2
from icarus.v1 import generation_service_pb2 as generation_pb2
from icarus.v1 import model_service_pb2 as model_pb2
from icarus.v1 import session_service_pb2 as session_pb2


class AsyncTurnStream(TurnRecord):
    """Iterates the deltas of a turn. Leave it early through `async with` or `cancel()`, which end the turn.

    A stream that breaks is resumed where it broke, as the client's `retry` says. Iterating and `result()` raise an
    `icarus.errors` class when the turn fails. Cancelling the task that waits here cancels the turn.
    """

    def __init__(self, open_call: OpenCall, abandon: Abandon, turn_id: str, attempts: Attempts):
        super().__init__(open_call, abandon, turn_id, attempts, asyncio.Event())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        while self._error is None and not self._cancelled:
            try:
                response = await self._read()
            except IcarusError as error:
                await self._recover(error)
                continue
            if response is None:
                break
            if (delta := self._take(response.event)) is not None:
                return delta
        raise StopAsyncIteration

    async def _read(self) -> Any:
        """The next message; None at the end."""
        try:
            response = await self._call.read()
        except grpc.aio.AioRpcError as error:
            if self.finish_reason is None:
                raise error_from_rpc(error) from None
            response = EOF
        except asyncio.CancelledError:  # grpc raises it for its own cancelled calls too
            if self._task_is_cancelled():
                self.cancel()
                raise
            response = EOF
        if response is not EOF:
            return response
        if self.finish_reason is None:
            raise self._dropped()
        return None

    async def _recover(self, error: IcarusError) -> None:
        """Waits, then asks for the rest of the stream. Raises the error where that would not help."""
        try:
            async with asyncio.timeout(self._delay_after(error)):
                await self._stop.wait()
        except TimeoutError:
            self._resume()
        except asyncio.CancelledError:
            self.cancel()
            raise

    @staticmethod
    def _task_is_cancelled() -> bool:
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0

    async def result(self) -> TurnResult:
        """Waits for the end of the turn. A cancelled turn gives what had arrived."""
        async for _ in self:
            pass
        return self._result()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.cancel()


class AsyncClient:
    """One gateway, one tenant; made and used within one event loop.

    `timeout` (seconds) bounds each call with all its attempts; `retry` says when a call is made again.
    `keepalive_seconds` is shorter than what any proxy on the way takes for idleness; a gateway takes no less than 5.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        tenant: str = DEFAULT_TENANT,
        timeout: float | None = None,
        retry: RetryPolicy = DEFAULT_RETRY,
        keepalive_seconds: float = DEFAULT_KEEPALIVE_SECONDS,
    ):
        self.address = m.check_text("address", address)
        self.tenant = m.check_text("tenant", tenant)
        self.timeout = timeout
        self.retry = retry
        self._channel = grpc.aio.insecure_channel(address, options=channel_options(address, keepalive_seconds))
        self._stubs = Stubs(self._channel)
        self._farewells: set[asyncio.Task[None]] = set()

    def generate(
        self,
        model: str,
        prompt: str | None = None,
        *,
        messages: m.Messages | None = None,
        token_ids: Sequence[int] | None = None,
        turn_id: str | None = None,
        resume_from: int = 0,
        timeout: float | None = None,
        **sampling: Unpack[m.Sampling],
    ) -> AsyncTurnStream:
        """Answers one prompt, given in one of three forms. The caller keeps the history.

        `turn_id` names the turn: the same call again gives the same stream, and with `resume_from` goes on after that
        many of its output tokens, which the result then leaves out.
        """
        content = m.build_content(prompt, messages, token_ids)
        turn = m.build_turn(self.tenant, model, content, turn_id, sampling, self.retry.resumes)

        def open_call(num_received: int, seconds_left: float | None, metadata: Metadata) -> Any:
            request = turn.without_session(resume_from + num_received)
            return self._stubs.generation.Generate(request, timeout=seconds_left, metadata=metadata)

        return AsyncTurnStream(open_call, self._abandon, turn.turn_id, self._attempts(timeout))

    async def create_session(
        self,
        text: str | None = None,
        *,
        messages: m.Messages | None = None,
        token_ids: Sequence[int] | None = None,
        ttl_seconds: float | None = None,
        timeout: float | None = None,
    ) -> "AsyncSession":
        """Opens a session whose history begins with the content, if any is given.

        It is forgotten after `ttl_seconds` without use; None takes the gateway's setting, which is also the most.
        """
        request = session_pb2.CreateSessionRequest(
            tenant=self.tenant, content=m.build_content(text, messages, token_ids), ttl_seconds=ttl_seconds
        )
        response = await self._call(self._stubs.sessions.CreateSession, request, timeout)
        return AsyncSession(self, response.session.session_id)

    def session(self, session_id: str) -> "AsyncSession":
        """A session opened earlier. Asks nobody: an unknown one raises NotFoundError at its first call."""
        return AsyncSession(self, session_id)

    async def sessions(self, *, page_size: int = 0, timeout: float | None = None) -> AsyncIterator[SessionSummary]:
        """The tenant's sessions, oldest first, asked for `page_size` at a time (0: as many as the gateway likes)."""
        request = session_pb2.ListSessionsRequest(tenant=self.tenant, page_size=page_size)
        while True:
            page = await self._call(self._stubs.sessions.ListSessions, request, timeout, repeatable=True)
            for summary in page.sessions:
                yield m.parse_summary(summary)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def models(self, *, timeout: float | None = None) -> ModelList:
        """What can be asked for."""
        return m.parse_models(
            await self._call(self._stubs.models.ListModels, model_pb2.ListModelsRequest(), timeout, repeatable=True)
        )

    async def load_adapter(
        self,
        name: str,
        path: str,
        mode: AdapterMode | str | None = None,
        workers: Sequence[str] = (),
        *,
        replace: bool = False,
        pin: bool = False,
        timeout: float | None = None,
    ) -> Model:
        """Loads a PEFT folder, as the workers see it, on the named workers or on every suitable one.

        `mode` None takes what the adapter's own metadata says. `replace` puts it in the place of other weights of this
        name: running turns keep what they began with, new turns get these. `pin` keeps its weights in memory.

        Raises AlreadyExistsError, FailedPreconditionError (made for another base), InvalidInputError (cannot be served,
        and why), OverloadedError (every slot is pinned).
        """
        request = m.build_load_adapter(name, path, mode, workers, replace, pin)
        return m.parse_model((await self._call(self._stubs.models.LoadAdapter, request, timeout)).model)

    async def pin_adapter(self, name: str, pinned: bool = True, *, timeout: float | None = None) -> None:
        """Keeps an adapter's weights in every worker's memory, or lets them be evicted again when slots run out."""
        request = model_pb2.PinAdapterRequest(name=m.check_text("name", name), pinned=pinned)
        await self._call(self._stubs.models.PinAdapter, request, timeout, repeatable=True)

    async def unload_adapter(self, name: str, *, timeout: float | None = None) -> None:
        """Unloads an adapter everywhere. Running turns finish on the weights they began with."""
        request = model_pb2.UnloadAdapterRequest(name=m.check_text("name", name))
        await self._call(self._stubs.models.UnloadAdapter, request, timeout)

    async def cluster(self, *, timeout: float | None = None) -> Cluster:
        """Every worker's state, now."""
        return m.parse_cluster(
            await self._call(self._stubs.cluster.GetCluster, cluster_pb2.GetClusterRequest(), timeout, repeatable=True)
        )

    async def close(self) -> None:
        """Ends the connection and what still runs on it."""
        await asyncio.gather(*self._farewells)
        await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def _abandon(self, turn_id: str) -> None:
        """Tells the gateway, without waiting for it, that nobody will come back for a turn."""
        if self.retry.resumes:
            farewell = asyncio.ensure_future(self._cancel_turn(turn_id))
            self._farewells.add(farewell)
            farewell.add_done_callback(self._farewells.discard)

    async def _cancel_turn(self, turn_id: str) -> None:
        request = generation_pb2.CancelTurnRequest(tenant=self.tenant, turn_id=turn_id)
        with suppress(grpc.aio.AioRpcError):
            await self._stubs.generation.CancelTurn(request, timeout=FAREWELL_SECONDS, wait_for_ready=True)

    def _attempts(self, timeout: float | None) -> Attempts:
        return Attempts(self.retry, timeout or self.timeout)

    async def _call(
        self, method: Callable[..., Any], request: Any, timeout: float | None, *, repeatable: bool = False
    ) -> Any:
        """`repeatable`: twice is as good as once."""
        attempts = self._attempts(timeout)
        while True:
            try:
                return await method(request, timeout=attempts.seconds_left())
            except grpc.aio.AioRpcError as rpc_error:
                error = error_from_rpc(rpc_error)
            await asyncio.sleep(attempts.delay_after(error, repeatable))


class AsyncSession:
    """A conversation that many specialists share, kept by the gateway as token ids."""

    def __init__(self, client: AsyncClient, session_id: str):
        self.session_id = m.check_text("session_id", session_id)
        self._client = client
        self._stub = client._stubs.sessions

    async def append(
        self,
        text: str | None = None,
        *,
        messages: m.Messages | None = None,
        token_ids: Sequence[int] | None = None,
        timeout: float | None = None,
    ) -> Appended:
        """Adds content to the history, without generating."""
        request = session_pb2.AppendContentRequest(
            tenant=self._client.tenant,
            session_id=self.session_id,
            content=m.build_content(text, messages, token_ids),
        )
        return m.parse_appended(await self._client._call(self._stub.AppendContent, request, timeout))

    def generate(
        self,
        model: str,
        text: str | None = None,
        *,
        messages: m.Messages | None = None,
        token_ids: Sequence[int] | None = None,
        turn_id: str | None = None,
        resume_from: int = 0,
        timeout: float | None = None,
        **sampling: Unpack[m.Sampling],
    ) -> AsyncTurnStream:
        """Lets one specialist answer the history and the content, if any is given.

        Both content and answer join the history when the turn finishes; a failed or cancelled turn changes nothing.

        `turn_id` names the turn: the same call again gives the same stream, and with `resume_from` goes on after that
        many of its output tokens, which the result then leaves out.
        """
        content = m.build_content(text, messages, token_ids)
        turn = m.build_turn(self._client.tenant, model, content, turn_id, sampling, self._client.retry.resumes)

        def open_call(num_received: int, seconds_left: float | None, metadata: Metadata) -> Any:
            request = turn.of_session(self.session_id, resume_from + num_received)
            return self._stub.GenerateTurn(request, timeout=seconds_left, metadata=metadata)

        return AsyncTurnStream(open_call, self._client._abandon, turn.turn_id, self._client._attempts(timeout))

    async def get(self, *, timeout: float | None = None) -> SessionState:
        """The session's history."""
        request = session_pb2.GetSessionRequest(tenant=self._client.tenant, session_id=self.session_id)
        return m.parse_session(
            (await self._client._call(self._stub.GetSession, request, timeout, repeatable=True)).session
        )

    async def fork(self, num_tokens: int | None = None, *, timeout: float | None = None) -> "AsyncSession":
        """A second session with the same history, or with its first tokens. Both then go their own ways."""
        request = session_pb2.ForkSessionRequest(
            tenant=self._client.tenant, session_id=self.session_id, num_tokens=num_tokens
        )
        response = await self._client._call(self._stub.ForkSession, request, timeout)
        return AsyncSession(self._client, response.session.session_id)

    async def token_ids(self, *, timeout: float | None = None) -> tuple[int, ...]:
        """Every token of the history."""
        return (await self.get(timeout=timeout)).token_ids

    async def delete(self, *, timeout: float | None = None) -> None:
        """Forgets the session."""
        request = session_pb2.DeleteSessionRequest(tenant=self._client.tenant, session_id=self.session_id)
        await self._client._call(self._stub.DeleteSession, request, timeout)
