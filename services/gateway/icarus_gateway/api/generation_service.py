"""icarus.v1.GenerationService."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from icarus.errors import InvalidInputError
from icarus.text.served_model import ServedModel
from icarus.v1 import generation_service_pb2 as pb
from icarus.v1 import generation_service_pb2_grpc as pb_grpc
from icarus_gateway.api.turn_call import parse_turn_call
from icarus_gateway.api.validation import parse_content, parse_model, parse_sampling, parse_tenant, parse_turn_id
from icarus_gateway.conversations import Conversations
from icarus_gateway.turns.events import end_to_wire, event_to_wire


class GenerationServicer(pb_grpc.GenerationServiceServicer):
    def __init__(self, model: ServedModel, conversations: Conversations):
        self._model = model
        self._conversations = conversations

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        turn = self._conversations.generate(
            parse_turn_call(request),
            parse_model(request.model),
            parse_content(request.content, self._model.vocab_size, self._model.context_length),
            parse_sampling(request.sampling, self._model.eos_token_ids, self._model.vocab_size),
        )
        async with aclosing(turn) as events:
            async for event in events:
                yield pb.GenerateResponse(event=event_to_wire(event))

    async def CancelTurn(self, request: pb.CancelTurnRequest, context: Any) -> pb.CancelTurnResponse:
        if not request.turn_id:
            raise InvalidInputError("turn_id is empty; name the turn to end")
        end = await self._conversations.cancel(parse_tenant(request.tenant), parse_turn_id(request.turn_id))
        return pb.CancelTurnResponse(finished=None if end is None else end_to_wire(end))
