from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TurnPhase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TURN_PHASE_UNSPECIFIED: _ClassVar[TurnPhase]
    TURN_PHASE_QUEUED: _ClassVar[TurnPhase]
    TURN_PHASE_RESERVED: _ClassVar[TurnPhase]
    TURN_PHASE_TRANSFERRING: _ClassVar[TurnPhase]
    TURN_PHASE_PREFILLING: _ClassVar[TurnPhase]
    TURN_PHASE_DECODING: _ClassVar[TurnPhase]
    TURN_PHASE_STREAMING: _ClassVar[TurnPhase]
TURN_PHASE_UNSPECIFIED: TurnPhase
TURN_PHASE_QUEUED: TurnPhase
TURN_PHASE_RESERVED: TurnPhase
TURN_PHASE_TRANSFERRING: TurnPhase
TURN_PHASE_PREFILLING: TurnPhase
TURN_PHASE_DECODING: TurnPhase
TURN_PHASE_STREAMING: TurnPhase

class HoldPhaseRequest(_message.Message):
    __slots__ = ("phase",)
    PHASE_FIELD_NUMBER: _ClassVar[int]
    phase: TurnPhase
    def __init__(self, phase: _Optional[_Union[TurnPhase, str]] = ...) -> None: ...

class HoldPhaseResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AwaitHeldRequest(_message.Message):
    __slots__ = ("phase",)
    PHASE_FIELD_NUMBER: _ClassVar[int]
    phase: TurnPhase
    def __init__(self, phase: _Optional[_Union[TurnPhase, str]] = ...) -> None: ...

class AwaitHeldResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReleasePhaseRequest(_message.Message):
    __slots__ = ("phase",)
    PHASE_FIELD_NUMBER: _ClassVar[int]
    phase: TurnPhase
    def __init__(self, phase: _Optional[_Union[TurnPhase, str]] = ...) -> None: ...

class ReleasePhaseResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CheckIntegrityRequest(_message.Message):
    __slots__ = ("skip_check",)
    SKIP_CHECK_FIELD_NUMBER: _ClassVar[int]
    skip_check: bool
    def __init__(self, skip_check: _Optional[bool] = ...) -> None: ...

class CheckIntegrityResponse(_message.Message):
    __slots__ = ("total_blocks", "free_blocks", "cached_blocks", "used_blocks", "quarantined_blocks", "leased_blocks", "block_bytes", "kv_written_tokens", "transfer_reads", "transfer_bytes", "running_requests", "waiting_requests", "leases_released", "leases_expired", "preemptions", "evicted_blocks")
    TOTAL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    CACHED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    USED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    LEASED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_WRITTEN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_READS_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_BYTES_FIELD_NUMBER: _ClassVar[int]
    RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    WAITING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    LEASES_RELEASED_FIELD_NUMBER: _ClassVar[int]
    LEASES_EXPIRED_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    EVICTED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    total_blocks: int
    free_blocks: int
    cached_blocks: int
    used_blocks: int
    quarantined_blocks: int
    leased_blocks: int
    block_bytes: int
    kv_written_tokens: int
    transfer_reads: int
    transfer_bytes: int
    running_requests: int
    waiting_requests: int
    leases_released: int
    leases_expired: int
    preemptions: int
    evicted_blocks: int
    def __init__(self, total_blocks: _Optional[int] = ..., free_blocks: _Optional[int] = ..., cached_blocks: _Optional[int] = ..., used_blocks: _Optional[int] = ..., quarantined_blocks: _Optional[int] = ..., leased_blocks: _Optional[int] = ..., block_bytes: _Optional[int] = ..., kv_written_tokens: _Optional[int] = ..., transfer_reads: _Optional[int] = ..., transfer_bytes: _Optional[int] = ..., running_requests: _Optional[int] = ..., waiting_requests: _Optional[int] = ..., leases_released: _Optional[int] = ..., leases_expired: _Optional[int] = ..., preemptions: _Optional[int] = ..., evicted_blocks: _Optional[int] = ...) -> None: ...
