from icarus.worker.v1 import blocks_pb2 as _blocks_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DecodeRequest(_message.Message):
    __slots__ = ("begin", "staged", "finish")
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    STAGED_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    begin: BeginTurn
    staged: PrefillStaged
    finish: FinishTurn
    def __init__(self, begin: _Optional[_Union[BeginTurn, _Mapping]] = ..., staged: _Optional[_Union[PrefillStaged, _Mapping]] = ..., finish: _Optional[_Union[FinishTurn, _Mapping]] = ...) -> None: ...

class BeginTurn(_message.Message):
    __slots__ = ("tenant", "turn_id", "token_ids", "num_output_tokens", "adapter", "sampling", "sources", "await_prefill", "adapter_digest", "session_id", "adapter_mode", "min_delta_tokens")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    TURN_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    NUM_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    AWAIT_PREFILL_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_MODE_FIELD_NUMBER: _ClassVar[int]
    MIN_DELTA_TOKENS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    turn_id: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    num_output_tokens: int
    adapter: str
    sampling: DecodeSampling
    sources: _containers.RepeatedCompositeFieldContainer[_blocks_pb2.BlockSource]
    await_prefill: bool
    adapter_digest: str
    session_id: str
    adapter_mode: str
    min_delta_tokens: int
    def __init__(self, tenant: _Optional[str] = ..., turn_id: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., num_output_tokens: _Optional[int] = ..., adapter: _Optional[str] = ..., sampling: _Optional[_Union[DecodeSampling, _Mapping]] = ..., sources: _Optional[_Iterable[_Union[_blocks_pb2.BlockSource, _Mapping]]] = ..., await_prefill: _Optional[bool] = ..., adapter_digest: _Optional[str] = ..., session_id: _Optional[str] = ..., adapter_mode: _Optional[str] = ..., min_delta_tokens: _Optional[int] = ...) -> None: ...

class DecodeSampling(_message.Message):
    __slots__ = ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop_token_ids", "min_tokens", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty", "logprobs")
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    min_tokens: int
    min_p: float
    frequency_penalty: float
    presence_penalty: float
    repetition_penalty: float
    logprobs: int
    def __init__(self, max_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., seed: _Optional[int] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., min_tokens: _Optional[int] = ..., min_p: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., logprobs: _Optional[int] = ...) -> None: ...

class PrefillStaged(_message.Message):
    __slots__ = ("blocks",)
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    blocks: StagedBlocks
    def __init__(self, blocks: _Optional[_Union[StagedBlocks, _Mapping]] = ...) -> None: ...

class StagedBlocks(_message.Message):
    __slots__ = ("worker_id", "address", "grant", "num_cached_tokens")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    address: str
    grant: _blocks_pb2.Grant
    num_cached_tokens: int
    def __init__(self, worker_id: _Optional[str] = ..., address: _Optional[str] = ..., grant: _Optional[_Union[_blocks_pb2.Grant, _Mapping]] = ..., num_cached_tokens: _Optional[int] = ...) -> None: ...

class FinishTurn(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DecodeResponse(_message.Message):
    __slots__ = ("reserved", "tokens", "finished", "prompt")
    RESERVED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    reserved: TurnReserved
    tokens: TokensGenerated
    finished: DecodeFinished
    prompt: PromptUsage
    def __init__(self, reserved: _Optional[_Union[TurnReserved, _Mapping]] = ..., tokens: _Optional[_Union[TokensGenerated, _Mapping]] = ..., finished: _Optional[_Union[DecodeFinished, _Mapping]] = ..., prompt: _Optional[_Union[PromptUsage, _Mapping]] = ...) -> None: ...

class TurnReserved(_message.Message):
    __slots__ = ("num_local_blocks",)
    NUM_LOCAL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    num_local_blocks: int
    def __init__(self, num_local_blocks: _Optional[int] = ...) -> None: ...

class PromptUsage(_message.Message):
    __slots__ = ("computed_tokens", "local_tokens", "remote_tokens", "written_under")
    COMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOCAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REMOTE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_UNDER_FIELD_NUMBER: _ClassVar[int]
    computed_tokens: int
    local_tokens: int
    remote_tokens: int
    written_under: _containers.RepeatedCompositeFieldContainer[WrittenTokens]
    def __init__(self, computed_tokens: _Optional[int] = ..., local_tokens: _Optional[int] = ..., remote_tokens: _Optional[int] = ..., written_under: _Optional[_Iterable[_Union[WrittenTokens, _Mapping]]] = ...) -> None: ...

class WrittenTokens(_message.Message):
    __slots__ = ("writer", "tokens")
    WRITER_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    writer: str
    tokens: int
    def __init__(self, writer: _Optional[str] = ..., tokens: _Optional[int] = ...) -> None: ...

class TokensGenerated(_message.Message):
    __slots__ = ("token_ids", "logprobs")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[GeneratedLogprobs]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[GeneratedLogprobs, _Mapping]]] = ...) -> None: ...

class GeneratedLogprobs(_message.Message):
    __slots__ = ("logprob", "top_ids", "top_logprobs")
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    logprob: float
    top_ids: _containers.RepeatedScalarFieldContainer[int]
    top_logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, logprob: _Optional[float] = ..., top_ids: _Optional[_Iterable[int]] = ..., top_logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class DecodeFinished(_message.Message):
    __slots__ = ("reason", "kv_written_tokens", "transfer_reads", "transfer_bytes", "block_sequence")
    REASON_FIELD_NUMBER: _ClassVar[int]
    KV_WRITTEN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_READS_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_BYTES_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    reason: str
    kv_written_tokens: int
    transfer_reads: int
    transfer_bytes: int
    block_sequence: int
    def __init__(self, reason: _Optional[str] = ..., kv_written_tokens: _Optional[int] = ..., transfer_reads: _Optional[int] = ..., transfer_bytes: _Optional[int] = ..., block_sequence: _Optional[int] = ...) -> None: ...
