"""Checks how a caller asks for a turn."""

import hashlib

from icarus.errors import InvalidInputError
from icarus.v1 import generation_service_pb2, session_service_pb2
from icarus_gateway.api.validation import parse_tenant, parse_turn_id
from icarus_gateway.turns.runs import MAX_DELTA_TOKENS, TurnCall

_NOT_WHAT_IS_ASKED = ("resume_from", "resumable", "min_delta_tokens")


def parse_turn_call(
    request: generation_service_pb2.GenerateRequest | session_service_pb2.GenerateTurnRequest,
) -> TurnCall:
    """Raises InvalidInputError for a name that is too long, a negative number, and `resume_from` without `turn_id`."""
    tenant = parse_tenant(request.tenant)
    for name in ("resume_from", "min_delta_tokens"):
        if (value := getattr(request, name)) < 0:
            raise InvalidInputError(f"{name} is {value}; it must be 0 or more")
    if not request.turn_id and (request.resume_from or request.resumable):
        raise InvalidInputError("resume_from and resumable need the turn_id of the turn")
    fingerprint = _fingerprint(request, tenant) if request.turn_id else None
    return TurnCall(
        tenant,
        parse_turn_id(request.turn_id),
        fingerprint,
        request.resume_from,
        request.resumable,
        min(request.min_delta_tokens, MAX_DELTA_TOKENS),
    )


def _fingerprint(
    request: generation_service_pb2.GenerateRequest | session_service_pb2.GenerateTurnRequest, tenant: str
) -> bytes:
    same = type(request).FromString(request.SerializeToString())
    same.tenant = tenant
    for field in _NOT_WHAT_IS_ASKED:
        same.ClearField(field)
    return hashlib.sha256(
        same.DESCRIPTOR.full_name.encode() + b"\0" + same.SerializeToString(deterministic=True)
    ).digest()
