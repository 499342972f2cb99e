from dataclasses import asdict

import pytest

from icarus.rpc import messages
from icarus.types import (
    AdapterInfo,
    AdapterMode,
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
from icarus.v1 import generation_pb2


def test_round_trips():
    for logprobs in (None, 0, 5):
        sampling = SamplingParams(7, 0.5, 0.25, 3, 2**64 - 1, frozenset({9, 2}), 2, 0.125, -0.5, 1.5, 1.25, logprobs)
        assert messages.sampling_from_wire(messages.sampling_to_wire(sampling)) == sampling
    for top in ((), (TokenLogprob(9, -0.5), TokenLogprob(4, -1.5))):
        entry = TokenLogprobs(TokenLogprob(4, -1.5), top)
        assert messages.generated_logprobs_from_wire(4, messages.generated_logprobs_to_wire(entry)) == entry
        public = messages.logprobs_to_wire(entry)
        assert (public.chosen.token_id, [item.token_id for item in public.top]) == (4, [item.token_id for item in top])
    source = BlockSource(WorkerId("d1"), "127.0.0.1:1", 4)
    assert messages.source_from_wire(messages.source_to_wire(source)) == source
    grant = Grant(LeaseId("l"), "i", 2.5, 3, (BlockId(5), BlockId(1)), ("", "math"))
    assert messages.grant_from_wire(messages.grant_to_wire(grant)) == grant
    adapter = AdapterInfo("math", "abc", AdapterMode.PRIVATE, 8, resident=False, pinned=True)
    assert messages.adapter_from_wire(messages.adapter_to_wire(adapter)) == adapter


def test_usage():
    usage = Usage(1, 2, 3, 4, 5, 6, 7, 8, 9)
    message = messages.usage_to_wire(usage)
    assert {name: getattr(message, name) for name in asdict(usage)} == asdict(usage)
    assert message.cached_tokens == 9


def test_enums():
    assert messages.finish_reason_to_wire(FinishReason.STOP) == generation_pb2.FINISH_REASON_STOP
    assert messages.finish_reason_to_wire(FinishReason.LENGTH) == generation_pb2.FINISH_REASON_LENGTH
    for mode in (*AdapterMode, None):
        assert messages.mode_from_wire(messages.mode_to_wire(mode)) is mode
    with pytest.raises(KeyError):
        messages.finish_reason_to_wire(FinishReason.CANCELLED)
