"""A turn under way, over all its attempts."""

from collections.abc import Callable
from dataclasses import dataclass, field

from icarus.cache.hashing import BlockNames
from icarus.rpc.messages import generated_logprobs_from_wire
from icarus.text.stop_strings import OutputText
from icarus.types import AdapterInfo, FinishReason, Usage, WorkerId
from icarus.worker.v1 import decode_service_pb2 as decode_pb
from icarus.worker.v1 import prefill_service_pb2 as prefill_pb
from icarus_gateway.cluster.routing import Route
from icarus_gateway.turns.events import BlockMark, Delta, End, TurnRequest
from icarus_gateway.turns.meter import TurnMeter
from icarus_gateway.turns.prompt_sources import PromptSources, prompt_sources


@dataclass
class TurnProgress:
    """What the client has of the turn, and what its attempts cost."""

    request: TurnRequest
    adapter: AdapterInfo | None
    text: OutputText
    emit: Callable[[Delta], None]
    meter: TurnMeter
    sources: PromptSources | None = None
    """Where the prompt came from, by the last attempt that said so."""
    num_found: int | None = None
    """Leading tokens of the prompt that were cached when the turn came: what later attempts find beyond is its own
    work. None before a worker has said."""
    output: list[int] = field(default_factory=list)
    tried: set[str] = field(default_factory=set)
    """Instance ids of workers that failed it."""
    num_failed_here: int = 0
    """Attempts in a row that failed with the output that there is now."""
    failed_prefills: set[str] = field(default_factory=set)
    """Instance ids of workers that did not prefill it when asked."""
    names: BlockNames | None = None
    """Of the blocks of its tokens, as far as an attempt needed them."""
    renewed: bool = False
    """Whether the adapter's name was looked up again."""
    num_resumed: int = 0
    """Output tokens at the end of the running attempt's prompt."""
    prefill_worker: WorkerId | None = None
    kv_written_tokens: int = 0
    transfer_reads: int = 0
    transfer_bytes: int = 0

    def add_cost(self, answer: prefill_pb.PrefillResponse | decode_pb.DecodeFinished) -> None:
        self.kv_written_tokens += answer.kv_written_tokens
        self.transfer_reads += answer.transfer_reads
        self.transfer_bytes += answer.transfer_bytes

    def attempt_failed(self, instance_id: str) -> None:
        """The running attempt failed, on this worker."""
        self.tried.add(instance_id)
        went_on = len(self.output) > self.num_resumed
        self.num_failed_here = 1 if went_on else self.num_failed_here + 1

    def learn_found(self, num_tokens: int) -> None:
        """An attempt found so many leading tokens in caches."""
        self.num_found = num_tokens if self.num_found is None else min(self.num_found, num_tokens)

    def learn_sources(self, message: decode_pb.PromptUsage) -> None:
        sources = prompt_sources(message, self.num_resumed)
        self.learn_found(sources.local + sources.remote)
        assert self.num_found is not None
        self.sources = sources.capped(self.num_found)
        self.meter.prompt_used(self.sources)

    def take(self, tokens: decode_pb.TokensGenerated) -> None:
        """Emits tokens of the worker, a delta each; those after a stop string are not the turn's."""
        before = len(self.output)
        for i, token_id in enumerate(tokens.token_ids):
            taken, text = self.text.push((token_id,))
            if not taken:
                break
            self.output += taken
            if self.reason() is not None:
                text += self.text.flush()
            logprobs = tuple(map(generated_logprobs_from_wire, taken, tokens.logprobs[i : i + 1]))
            self.emit(Delta((token_id,), text, logprobs))
        self.meter.tokens(len(tokens.token_ids), len(self.output) - before)

    def reason(self) -> FinishReason | None:
        """Why the turn is over, as far as its tokens tell; None while it goes on."""
        params = self.request.sampling.params
        if self.text.stopped or (self.output and self.output[-1] in params.stop_token_ids):
            return FinishReason.STOP
        return FinishReason.LENGTH if len(self.output) >= params.max_tokens else None

    def end(self, route: Route, finished: decode_pb.DecodeFinished | None) -> End:
        """Emits the rest of the text. `finished` is None where the worker died after the turn's last token."""
        if rest := self.text.flush():
            self.emit(Delta((), rest))
        reason = self.reason()
        if finished is not None:
            self.add_cost(finished)
            reason = reason or FinishReason(finished.reason)
        assert reason is not None
        worker = route.decode
        mark = None
        if finished is not None:
            mark = BlockMark(worker.worker_id, worker.info.instance_id, finished.block_sequence)
        seed = self.request.sampling.params.seed
        return End(reason, self._usage(), seed, worker.worker_id, self.prefill_worker, mark, route.names)

    def _usage(self) -> Usage:
        """What the last attempt used. What a worker wrote that died is not known and not in `kv_written_tokens`."""
        num_prompt = len(self.request.prompt)
        sources = self.sources or PromptSources(computed=num_prompt)
        return Usage(
            prompt_tokens=num_prompt,
            completion_tokens=len(self.output),
            computed_tokens=sources.computed,
            local_tokens=sources.local,
            remote_tokens=sources.remote,
            cross_adapter_tokens=sources.cross_adapter,
            kv_written_tokens=self.kv_written_tokens,
            transfer_reads=self.transfer_reads,
            transfer_bytes=self.transfer_bytes,
        )
