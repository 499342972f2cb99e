"""Protobuf messages as icarus types and back."""

from icarus.types import (
    AdapterInfo,
    AdapterMode,
    BlockHash,
    BlockId,
    BlockSource,
    FinishReason,
    Grant,
    LeaseId,
    SamplingParams,
    TokenLogprob,
    TokenLogprobs,
    Usage,
    WorkerId,
)
from icarus.v1 import generation_pb2, model_service_pb2
from icarus.worker.v1 import blocks_pb2, decode_service_pb2, registry_service_pb2

PROTOCOL_VERSION = 3
"""Of icarus.worker.v1. Gateway and workers of different versions do not talk."""

_USAGE_FIELDS = (
    "prompt_tokens",
    "completion_tokens",
    "computed_tokens",
    "local_tokens",
    "remote_tokens",
    "cross_adapter_tokens",
    "kv_written_tokens",
    "transfer_reads",
    "transfer_bytes",
)

_FINISH_REASONS = {
    FinishReason.STOP: generation_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: generation_pb2.FINISH_REASON_LENGTH,
}

_MODES = {
    AdapterMode.SHARED: model_service_pb2.ADAPTER_MODE_SHARED,
    AdapterMode.PRIVATE: model_service_pb2.ADAPTER_MODE_PRIVATE,
}


def sampling_to_wire(params: SamplingParams) -> decode_service_pb2.DecodeSampling:
    return decode_service_pb2.DecodeSampling(
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        seed=params.seed,
        stop_token_ids=sorted(params.stop_token_ids),
        min_tokens=params.min_tokens,
        min_p=params.min_p,
        frequency_penalty=params.frequency_penalty,
        presence_penalty=params.presence_penalty,
        repetition_penalty=params.repetition_penalty,
        logprobs=params.logprobs,
    )


def sampling_from_wire(message: decode_service_pb2.DecodeSampling) -> SamplingParams:
    return SamplingParams(
        max_tokens=message.max_tokens,
        temperature=message.temperature,
        top_p=message.top_p,
        top_k=message.top_k,
        seed=message.seed,
        stop_token_ids=frozenset(message.stop_token_ids),
        min_tokens=message.min_tokens,
        min_p=message.min_p,
        frequency_penalty=message.frequency_penalty,
        presence_penalty=message.presence_penalty,
        repetition_penalty=message.repetition_penalty,
        logprobs=message.logprobs if message.HasField("logprobs") else None,
    )


def generated_logprobs_to_wire(entry: TokenLogprobs) -> decode_service_pb2.GeneratedLogprobs:
    """The worker's form: the chosen token's id is beside it in TokensGenerated."""
    return decode_service_pb2.GeneratedLogprobs(
        logprob=entry.chosen.logprob,
        top_ids=[top.token_id for top in entry.top],
        top_logprobs=[top.logprob for top in entry.top],
    )


def generated_logprobs_from_wire(token_id: int, message: decode_service_pb2.GeneratedLogprobs) -> TokenLogprobs:
    top = map(TokenLogprob, message.top_ids, message.top_logprobs)
    return TokenLogprobs(TokenLogprob(token_id, message.logprob), tuple(top))


def logprobs_to_wire(entry: TokenLogprobs) -> generation_pb2.TokenLogprobs:
    """The public form."""
    chosen, *top = (
        generation_pb2.TokenLogprob(token_id=item.token_id, logprob=item.logprob) for item in (entry.chosen, *entry.top)
    )
    return generation_pb2.TokenLogprobs(chosen=chosen, top=top)


def logprobs_from_wire(message: generation_pb2.TokenLogprobs) -> TokenLogprobs:
    chosen, *top = (TokenLogprob(item.token_id, item.logprob) for item in (message.chosen, *message.top))
    return TokenLogprobs(chosen, tuple(top))


def usage_to_wire(usage: Usage) -> generation_pb2.Usage:
    counts = {name: getattr(usage, name) for name in _USAGE_FIELDS}
    return generation_pb2.Usage(cached_tokens=usage.cached_tokens, **counts)


def usage_from_wire(message: generation_pb2.Usage) -> Usage:
    return Usage(**{name: getattr(message, name) for name in _USAGE_FIELDS})


def source_to_wire(source: BlockSource) -> blocks_pb2.BlockSource:
    return blocks_pb2.BlockSource(worker_id=source.worker_id, address=source.address, num_blocks=source.num_blocks)


def source_from_wire(message: blocks_pb2.BlockSource) -> BlockSource:
    return BlockSource(WorkerId(message.worker_id), message.address, message.num_blocks)


def grant_to_wire(grant: Grant) -> blocks_pb2.Grant:
    blocks = zip(grant.block_ids, grant.writers, strict=True)
    return blocks_pb2.Grant(
        lease_id=grant.lease_id,
        owner_instance_id=grant.owner_instance_id,
        duration_seconds=grant.duration_seconds,
        first_block=grant.first_block,
        blocks=[blocks_pb2.GrantedBlock(block_id=block_id, writer=writer) for block_id, writer in blocks],
        last_block_hash=grant.last_block_hash,
    )


def grant_from_wire(message: blocks_pb2.Grant) -> Grant:
    return Grant(
        lease_id=LeaseId(message.lease_id),
        owner_instance_id=message.owner_instance_id,
        duration_seconds=message.duration_seconds,
        first_block=message.first_block,
        block_ids=tuple(BlockId(block.block_id) for block in message.blocks),
        writers=tuple(block.writer for block in message.blocks),
        last_block_hash=BlockHash(message.last_block_hash),
    )


def adapter_to_wire(adapter: AdapterInfo) -> registry_service_pb2.Adapter:
    return registry_service_pb2.Adapter(
        name=adapter.name,
        digest=adapter.digest,
        mode=adapter.mode.value,
        rank=adapter.rank,
        resident=adapter.resident,
        pinned=adapter.pinned,
    )


def adapter_from_wire(message: registry_service_pb2.Adapter) -> AdapterInfo:
    """Raises ValueError for a mode that is neither "shared" nor "private"."""
    return AdapterInfo(
        message.name, message.digest, AdapterMode(message.mode), message.rank, message.resident, message.pinned
    )


def finish_reason_to_wire(reason: FinishReason) -> generation_pb2.FinishReason:
    """Raises KeyError for CANCELLED: a cancelled turn has no end to report."""
    return _FINISH_REASONS[reason]


def finish_reason_from_wire(message: int) -> FinishReason:
    """Raises StopIteration for one that this release does not know."""
    return next(reason for reason, number in _FINISH_REASONS.items() if number == message)


def mode_to_wire(mode: AdapterMode | None) -> model_service_pb2.AdapterMode:
    return model_service_pb2.ADAPTER_MODE_UNSPECIFIED if mode is None else _MODES[mode]


def mode_from_wire(message: int) -> AdapterMode | None:
    """None for ADAPTER_MODE_UNSPECIFIED."""
    return next((mode for mode, wire in _MODES.items() if wire == message), None)
