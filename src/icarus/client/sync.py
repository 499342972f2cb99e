"""The client for threads. Written out of `aio.py` by `make client`: change that."""

from collections.abc import Iterator, Sequence
from os import PathLike
from typing import Self, Unpack

import grpc

from icarus.client import messages as m
from icarus.client.arguments import build, check_text
from icarus.client.connection import DEFAULT_ADDRESS, DEFAULT_KEEPALIVE_SECONDS, Headers, Target, parse_headers
from icarus.client.connection_sync import Connection, TurnStream
from icarus.client.results import Appended, Cluster, Model, ModelList, SessionState, SessionSummary
from icarus.client.retry import DEFAULT_RETRY, RetryPolicy
from icarus.types import DEFAULT_TENANT, AdapterMode
from icarus.v1 import cluster_service_pb2 as cluster_pb2
from icarus.v1 import model_service_pb2 as model_pb2
from icarus.v1 import session_service_pb2 as session_pb2


class Client:
    """One gateway, one tenant; safe to use from several threads.

    `timeout` (seconds) bounds each call with all its attempts; `retry` says when a call is made again.
    `keepalive_seconds` is shorter than what any proxy on the way takes for idleness; a gateway takes no less than 5.
    `credentials` make the connection TLS (grpc.ssl_channel_credentials()); `metadata` are headers of every call, as a
    mapping or as pairs. Raises InvalidInputError for what cannot be.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        tenant: str = DEFAULT_TENANT,
        timeout: float | None = None,
        retry: RetryPolicy = DEFAULT_RETRY,
        keepalive_seconds: float = DEFAULT_KEEPALIVE_SECONDS,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Headers = (),
    ):
        target = Target(address, tenant, timeout, retry, keepalive_seconds, credentials, parse_headers(metadata))
        self._connection = Connection(target)
        self._stubs = self._connection.stubs
        self._call = self._connection.call

    @property
    def address(self) -> str:
        return self._connection.target.address

    @property
    def tenant(self) -> str:
        return self._connection.target.tenant

    def generate(
        self,
        model: str,
        text: str | None = None,
        *,
        messages: m.Messages | None = None,
        token_ids: Sequence[int] | None = None,
        turn_id: str | None = None,
        resume_from: int = 0,
        min_delta_tokens: int = 0,
        timeout: float | None = None,
        **sampling: Unpack[m.Sampling],
    ) -> TurnStream:
        """Answers one prompt: text, messages or token ids. The caller keeps the history.

        `turn_id` names the turn: the same call again gives the same stream, and with `resume_from` goes on after that
        many of its output tokens, which the result then leaves out.

        `min_delta_tokens`: the fewest new tokens that come at once, but for the first and the last. Whoever reads whole
        answers asks for as many as the answer may have, and spares the services most of what a token costs them.
        """
        content = m.build_content(text, messages, token_ids)
        resumable = self._connection.target.retry.resumes
        request = m.build_turn(self.tenant, model, content, turn_id, resume_from, sampling, resumable, min_delta_tokens)
        return self._connection.stream(self._stubs.generation.Generate, request, timeout)

    def create_session(
        self,
        text: str | None = None,
        *,
        messages: m.Messages | None = None,
        token_ids: Sequence[int] | None = None,
        ttl_seconds: float | None = None,
        timeout: float | None = None,
    ) -> "Session":
        """Opens a session whose history begins with the content, if any is given.

        It is forgotten after `ttl_seconds` without use; None takes the gateway's setting, which is also the most.
        """
        request = build(
            session_pb2.CreateSessionRequest,
            tenant=self.tenant,
            content=m.build_content(text, messages, token_ids),
            ttl_seconds=ttl_seconds,
        )
        response = self._call(self._stubs.sessions.CreateSession, request, timeout)
        return Session(self._connection, response.session.session_id)

    def session(self, session_id: str) -> "Session":
        """A session opened earlier. Asks nobody: an unknown one raises NotFoundError at its first call."""
        return Session(self._connection, session_id)

    def sessions(self, *, page_size: int = 0, timeout: float | None = None) -> Iterator[SessionSummary]:
        """The tenant's sessions, oldest first, asked for `page_size` at a time (0: as many as the gateway likes)."""
        request = build(session_pb2.ListSessionsRequest, tenant=self.tenant, page_size=page_size)
        while True:
            page = self._call(self._stubs.sessions.ListSessions, request, timeout, repeatable=True)
            for summary in page.sessions:
                yield m.parse_summary(summary)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def models(self, *, timeout: float | None = None) -> ModelList:
        """What can be asked for."""
        return m.parse_models(
            self._call(self._stubs.models.ListModels, model_pb2.ListModelsRequest(), timeout, repeatable=True)
        )

    def load_adapter(
        self,
        name: str,
        path: str | PathLike[str],
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
        response = self._call(self._stubs.models.LoadAdapter, request, timeout)
        return m.parse_model(response.model)

    def pin_adapter(self, name: str, pinned: bool = True, *, timeout: float | None = None) -> None:
        """Keeps an adapter's weights in every worker's memory, or lets them be evicted again when slots run out."""
        request = build(model_pb2.PinAdapterRequest, name=check_text("name", name), pinned=pinned)
        self._call(self._stubs.models.PinAdapter, request, timeout, repeatable=True)

    def unload_adapter(self, name: str, *, timeout: float | None = None) -> None:
        """Unloads an adapter everywhere. Running turns finish on the weights they began with."""
        request = build(model_pb2.UnloadAdapterRequest, name=check_text("name", name))
        self._call(self._stubs.models.UnloadAdapter, request, timeout)

    def cluster(self, *, timeout: float | None = None) -> Cluster:
        """Every worker's state, now."""
        return m.parse_cluster(
            self._call(self._stubs.cluster.GetCluster, cluster_pb2.GetClusterRequest(), timeout, repeatable=True)
        )

    def close(self) -> None:
        """Ends the connection and what still runs on it: turns under way are cancelled."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Session:
    """A conversation that many specialists share, kept by the gateway as token ids."""

    def __init__(self, connection: Connection, session_id: str):
        self.session_id = check_text("session_id", session_id)
        self._connection = connection
        self._call = connection.call
        self._stub = connection.stubs.sessions
        self._tenant = connection.target.tenant

    def append(
        self,
        text: str | None = None,
        *,
        messages: m.Messages | None = None,
        token_ids: Sequence[int] | None = None,
        timeout: float | None = None,
    ) -> Appended:
        """Adds content to the history, without generating."""
        request = build(
            session_pb2.AppendContentRequest,
            tenant=self._tenant,
            session_id=self.session_id,
            content=m.build_content(text, messages, token_ids),
        )
        return m.parse_appended(self._call(self._stub.AppendContent, request, timeout))

    def generate(
        self,
        model: str,
        text: str | None = None,
        *,
        messages: m.Messages | None = None,
        token_ids: Sequence[int] | None = None,
        turn_id: str | None = None,
        resume_from: int = 0,
        min_delta_tokens: int = 0,
        timeout: float | None = None,
        **sampling: Unpack[m.Sampling],
    ) -> TurnStream:
        """Lets one specialist answer the history and the content, if any is given.

        Both content and answer join the history when the turn finishes; a failed or cancelled turn changes nothing.

        `turn_id` names the turn: the same call again gives the same stream, and with `resume_from` goes on after that
        many of its output tokens, which the result then leaves out.

        `min_delta_tokens`: the fewest new tokens that come at once, but for the first and the last. Whoever reads whole
        answers asks for as many as the answer may have, and spares the services most of what a token costs them.
        """
        content = m.build_content(text, messages, token_ids)
        resumable = self._connection.target.retry.resumes
        request = m.build_turn(
            self._tenant,
            model,
            content,
            turn_id,
            resume_from,
            sampling,
            resumable=resumable,
            min_delta_tokens=min_delta_tokens,
            session_id=self.session_id,
        )
        return self._connection.stream(self._stub.GenerateTurn, request, timeout)

    def get(self, *, timeout: float | None = None) -> SessionState:
        """The session's history."""
        request = build(session_pb2.GetSessionRequest, tenant=self._tenant, session_id=self.session_id)
        response = self._call(self._stub.GetSession, request, timeout, repeatable=True)
        return m.parse_session(response.session)

    def fork(self, num_tokens: int | None = None, *, timeout: float | None = None) -> "Session":
        """A second session with the same history, or with its first tokens. Both then go their own ways."""
        request = build(
            session_pb2.ForkSessionRequest, tenant=self._tenant, session_id=self.session_id, num_tokens=num_tokens
        )
        response = self._call(self._stub.ForkSession, request, timeout)
        return Session(self._connection, response.session.session_id)

    def token_ids(self, *, timeout: float | None = None) -> tuple[int, ...]:
        """Every token of the history."""
        state = self.get(timeout=timeout)
        return state.token_ids

    def delete(self, *, timeout: float | None = None) -> None:
        """Forgets the session."""
        request = build(session_pb2.DeleteSessionRequest, tenant=self._tenant, session_id=self.session_id)
        self._call(self._stub.DeleteSession, request, timeout)
