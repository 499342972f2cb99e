"""icarus.v1.SessionService."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from icarus.v1 import session_service_pb2 as pb
from icarus.v1 import session_service_pb2_grpc as pb_grpc
from icarus_gateway.conversations import Conversations
from icarus_gateway.served_model import ServedModel
from icarus_gateway.sessions import Session
from icarus_gateway.turn_events import event_to_wire
from icarus_gateway.validation import parse_content, parse_sampling, parse_tenant, parse_turn_id


class SessionServicer(pb_grpc.SessionServiceServicer):
    def __init__(self, model: ServedModel, conversations: Conversations):
        self._model = model
        self._conversations = conversations

    async def CreateSession(self, request: pb.CreateSessionRequest, context: Any) -> pb.CreateSessionResponse:
        content = self._content(request)
        return pb.CreateSessionResponse(
            session=_to_wire(self._conversations.create(parse_tenant(request.tenant), content))
        )

    async def AppendContent(self, request: pb.AppendContentRequest, context: Any) -> pb.AppendContentResponse:
        content = parse_content(request.content, self._model.vocab_size)
        appended, total = self._conversations.append(parse_tenant(request.tenant), request.session_id, content)
        return pb.AppendContentResponse(num_appended_tokens=appended, num_tokens=total)

    async def GenerateTurn(
        self, request: pb.GenerateTurnRequest, context: Any
    ) -> AsyncIterator[pb.GenerateTurnResponse]:
        turn = self._conversations.generate_turn(
            parse_tenant(request.tenant),
            request.session_id,
            parse_turn_id(request.turn_id),
            request.model,
            self._content(request),
            parse_sampling(request.sampling, self._model.eos_token_ids),
        )
        async with aclosing(turn) as events:
            async for event in events:
                yield pb.GenerateTurnResponse(event=event_to_wire(event))

    async def GetSession(self, request: pb.GetSessionRequest, context: Any) -> pb.GetSessionResponse:
        session = self._conversations.get(parse_tenant(request.tenant), request.session_id)
        return pb.GetSessionResponse(session=_to_wire(session))

    async def DeleteSession(self, request: pb.DeleteSessionRequest, context: Any) -> pb.DeleteSessionResponse:
        self._conversations.delete(parse_tenant(request.tenant), request.session_id)
        return pb.DeleteSessionResponse()

    def _content(self, request: pb.CreateSessionRequest | pb.GenerateTurnRequest) -> Any:
        return parse_content(request.content, self._model.vocab_size) if request.HasField("content") else None


def _to_wire(session: Session) -> pb.Session:
    history = session.history
    return pb.Session(session_id=session.session_id, token_ids=history.token_ids, num_turns=history.num_turns)
