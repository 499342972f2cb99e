from icarus.v1 import generation_pb2 as _generation_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GenerateRequest(_message.Message):
    __slots__ = ("tenant", "turn_id", "model", "content", "sampling", "resume_from", "resumable", "min_delta_tokens")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    TURN_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    RESUME_FROM_FIELD_NUMBER: _ClassVar[int]
    RESUMABLE_FIELD_NUMBER: _ClassVar[int]
    MIN_DELTA_TOKENS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    turn_id: str
    model: str
    content: _generation_pb2.Content
    sampling: _generation_pb2.SamplingParams
    resume_from: int
    resumable: bool
    min_delta_tokens: int
    def __init__(self, tenant: _Optional[str] = ..., turn_id: _Optional[str] = ..., model: _Optional[str] = ..., content: _Optional[_Union[_generation_pb2.Content, _Mapping]] = ..., sampling: _Optional[_Union[_generation_pb2.SamplingParams, _Mapping]] = ..., resume_from: _Optional[int] = ..., resumable: _Optional[bool] = ..., min_delta_tokens: _Optional[int] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: _generation_pb2.TurnEvent
    def __init__(self, event: _Optional[_Union[_generation_pb2.TurnEvent, _Mapping]] = ...) -> None: ...

class CancelTurnRequest(_message.Message):
    __slots__ = ("tenant", "turn_id")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    TURN_ID_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    turn_id: str
    def __init__(self, tenant: _Optional[str] = ..., turn_id: _Optional[str] = ...) -> None: ...

class CancelTurnResponse(_message.Message):
    __slots__ = ("finished",)
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    finished: _generation_pb2.TurnFinished
    def __init__(self, finished: _Optional[_Union[_generation_pb2.TurnFinished, _Mapping]] = ...) -> None: ...
