"""icarus.v1.SessionService."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from icarus.errors import InvalidInputError
from icarus.text.content import Content
from icarus.text.served_model import ServedModel
from icarus.v1 import session_service_pb2 as pb
from icarus.v1 import session_service_pb2_grpc as pb_grpc
from icarus_gateway.api.turn_call import parse_turn_call
from icarus_gateway.api.validation import parse_content, parse_model, parse_sampling, parse_session_id, parse_tenant
from icarus_gateway.conversations import Conversations
from icarus_gateway.sessions.store import Session
from icarus_gateway.turns.events import event_to_wire

_DEFAULT_PAGE_SIZE = 100
_MAX_PAGE_SIZE = 1000


class SessionServicer(pb_grpc.SessionServiceServicer):
    def __init__(self, model: ServedModel, conversations: Conversations):
        self._model = model
        self._conversations = conversations

    async def CreateSession(self, request: pb.CreateSessionRequest, context: Any) -> pb.CreateSessionResponse:
        ttl_seconds = request.ttl_seconds if request.HasField("ttl_seconds") else None
        session = await self._conversations.create(parse_tenant(request.tenant), self._content(request), ttl_seconds)
        return pb.CreateSessionResponse(session=_to_wire(session))

    async def AppendContent(self, request: pb.AppendContentRequest, context: Any) -> pb.AppendContentResponse:
        tenant, session_id = parse_tenant(request.tenant), parse_session_id(request.session_id)
        appended, total = await self._conversations.append(tenant, session_id, self._parse_content(request))
        return pb.AppendContentResponse(num_appended_tokens=appended, num_tokens=total)

    async def GenerateTurn(
        self, request: pb.GenerateTurnRequest, context: Any
    ) -> AsyncIterator[pb.GenerateTurnResponse]:
        turn = self._conversations.generate_turn(
            parse_turn_call(request),
            parse_session_id(request.session_id),
            parse_model(request.model),
            self._content(request),
            parse_sampling(request.sampling, self._model.eos_token_ids, self._model.vocab_size),
        )
        async with aclosing(turn) as events:
            async for event in events:
                yield pb.GenerateTurnResponse(event=event_to_wire(event))

    async def ForkSession(self, request: pb.ForkSessionRequest, context: Any) -> pb.ForkSessionResponse:
        num_tokens = request.num_tokens if request.HasField("num_tokens") else None
        session_id = parse_session_id(request.session_id)
        session = await self._conversations.fork(parse_tenant(request.tenant), session_id, num_tokens)
        return pb.ForkSessionResponse(session=_to_wire(session))

    async def ListSessions(self, request: pb.ListSessionsRequest, context: Any) -> pb.ListSessionsResponse:
        limit = _parse_page_size(request.page_size)
        page = self._conversations.list(parse_tenant(request.tenant), _parse_page_token(request.page_token), limit)
        return pb.ListSessionsResponse(
            sessions=map(_summary_to_wire, page.sessions),
            next_page_token="" if page.next_after is None else str(page.next_after),
        )

    async def GetSession(self, request: pb.GetSessionRequest, context: Any) -> pb.GetSessionResponse:
        session = self._conversations.get(parse_tenant(request.tenant), parse_session_id(request.session_id))
        return pb.GetSessionResponse(session=_to_wire(session))

    async def DeleteSession(self, request: pb.DeleteSessionRequest, context: Any) -> pb.DeleteSessionResponse:
        await self._conversations.delete(parse_tenant(request.tenant), parse_session_id(request.session_id))
        return pb.DeleteSessionResponse()

    def _content(self, request: pb.CreateSessionRequest | pb.GenerateTurnRequest) -> Content | None:
        return self._parse_content(request) if request.HasField("content") else None

    def _parse_content(self, request: Any) -> Content:
        return parse_content(request.content, self._model.vocab_size, self._model.context_length)


def _parse_page_size(page_size: int) -> int:
    if not 0 <= page_size <= _MAX_PAGE_SIZE:
        raise InvalidInputError(f"page_size is {page_size}; it must be in [0, {_MAX_PAGE_SIZE}], 0 for the default")
    return page_size or _DEFAULT_PAGE_SIZE


def _parse_page_token(page_token: str) -> int:
    """The number of the session that the last page ended with."""
    if page_token and not (page_token.isascii() and page_token.isdecimal() and len(page_token) < 20):
        raise InvalidInputError(f"page_token {page_token[:20]!r} is none of ListSessions; take the last answer's")
    return int(page_token or 0)


def _to_wire(session: Session) -> pb.Session:
    history = session.history
    return pb.Session(
        session_id=session.session_id,
        token_ids=history.token_ids,
        num_turns=history.end.num_turns,
        expires_in_seconds=session.expires_in_seconds,
    )


def _summary_to_wire(session: Session) -> pb.SessionSummary:
    return pb.SessionSummary(
        session_id=session.session_id,
        num_tokens=session.history.num_tokens,
        num_turns=session.history.end.num_turns,
        expires_in_seconds=session.expires_in_seconds,
    )
