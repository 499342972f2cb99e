from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BlockSource(_message.Message):
    __slots__ = ("worker_id", "address", "num_blocks")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    address: str
    num_blocks: int
    def __init__(self, worker_id: _Optional[str] = ..., address: _Optional[str] = ..., num_blocks: _Optional[int] = ...) -> None: ...

class Grant(_message.Message):
    __slots__ = ("lease_id", "duration_seconds", "first_block", "blocks", "owner_instance_id", "last_block_hash")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    DURATION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    FIRST_BLOCK_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    OWNER_INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    LAST_BLOCK_HASH_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    duration_seconds: float
    first_block: int
    blocks: _containers.RepeatedCompositeFieldContainer[GrantedBlock]
    owner_instance_id: str
    last_block_hash: bytes
    def __init__(self, lease_id: _Optional[str] = ..., duration_seconds: _Optional[float] = ..., first_block: _Optional[int] = ..., blocks: _Optional[_Iterable[_Union[GrantedBlock, _Mapping]]] = ..., owner_instance_id: _Optional[str] = ..., last_block_hash: _Optional[bytes] = ...) -> None: ...

class GrantedBlock(_message.Message):
    __slots__ = ("block_id", "writer")
    BLOCK_ID_FIELD_NUMBER: _ClassVar[int]
    WRITER_FIELD_NUMBER: _ClassVar[int]
    block_id: int
    writer: str
    def __init__(self, block_id: _Optional[int] = ..., writer: _Optional[str] = ...) -> None: ...
