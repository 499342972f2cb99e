from icarus.worker.v1 import blocks_pb2 as _blocks_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PrefillRequest(_message.Message):
    __slots__ = ("tenant", "turn_id", "token_ids", "adapter", "adapter_mode", "first_block", "sources", "adapter_digest", "session_id", "lease_id")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    TURN_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_MODE_FIELD_NUMBER: _ClassVar[int]
    FIRST_BLOCK_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    turn_id: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    adapter: str
    adapter_mode: str
    first_block: int
    sources: _containers.RepeatedCompositeFieldContainer[_blocks_pb2.BlockSource]
    adapter_digest: str
    session_id: str
    lease_id: str
    def __init__(self, tenant: _Optional[str] = ..., turn_id: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., adapter: _Optional[str] = ..., adapter_mode: _Optional[str] = ..., first_block: _Optional[int] = ..., sources: _Optional[_Iterable[_Union[_blocks_pb2.BlockSource, _Mapping]]] = ..., adapter_digest: _Optional[str] = ..., session_id: _Optional[str] = ..., lease_id: _Optional[str] = ...) -> None: ...

class PrefillResponse(_message.Message):
    __slots__ = ("grant", "num_cached_tokens", "kv_written_tokens", "transfer_reads", "transfer_bytes")
    GRANT_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_WRITTEN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_READS_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_BYTES_FIELD_NUMBER: _ClassVar[int]
    grant: _blocks_pb2.Grant
    num_cached_tokens: int
    kv_written_tokens: int
    transfer_reads: int
    transfer_bytes: int
    def __init__(self, grant: _Optional[_Union[_blocks_pb2.Grant, _Mapping]] = ..., num_cached_tokens: _Optional[int] = ..., kv_written_tokens: _Optional[int] = ..., transfer_reads: _Optional[int] = ..., transfer_bytes: _Optional[int] = ...) -> None: ...
