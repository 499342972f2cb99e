"""One worker: an asyncio loop (gRPC), the engine thread and the transfer thread, and what is between them."""

import asyncio
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from icarus.adapters.lora import LoraWeights
from icarus.cache.hashing import root_hash
from icarus.engine.engine import Engine
from icarus.engine.request import Request
from icarus.engine.thread import EngineThread
from icarus.errors import InvalidInputError, UnavailableError
from icarus.transfer.thread import TransferThread
from icarus.types import AdapterMode, BlockHash, RequestId, Role, WorkerId
from icarus.worker.adapter_host import AdapterHost
from icarus.worker.event_queue import EventQueue
from icarus.worker.fetch import BlockFetch
from icarus.worker.fetch_record import FetchRecord
from icarus.worker.metrics import WorkerMetrics
from icarus.worker.peers import PeerTable
from icarus.worker.phases import PhaseGates
from icarus.worker.turn import WorkerTurn
from icarus.worker.turn_spec import TurnSpec

_DRAIN_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Identity:
    """Who a worker is."""

    worker_id: WorkerId
    instance_id: str
    """Drawn anew at each start."""
    role: Role
    base_model: str
    base_digest: str
    fingerprint: str
    block_size: int
    num_blocks: int
    block_bytes: int
    context_length: int
    vocab_size: int


class Worker:
    """Everything that the services of a worker process share."""

    def __init__(
        self,
        identity: Identity,
        adapters: AdapterHost,
        engine: EngineThread,
        transfer: TransferThread,
        gates: PhaseGates,
        metrics: WorkerMetrics,
        prefix_reuse: bool,
        max_step_seconds: float,
    ):
        """A step that takes longer than `max_step_seconds` hangs."""
        self.identity = identity
        self.adapters = adapters
        self.engine = engine
        self.transfer = transfer
        self.gates = gates
        self._metrics = metrics
        self._prefix_reuse = prefix_reuse
        self._max_step_seconds = max_step_seconds
        self._draining = False
        self.fetches = FetchRecord(lambda result: metrics.transfer_seconds.observe(result.seconds))
        self._peers = PeerTable(transfer, identity.fingerprint)

    async def start(self) -> None:
        """Raises TransferError if the transport does not come up."""
        await asyncio.to_thread(self.transfer.start)
        self.engine.start()

    @property
    def hangs(self) -> bool:
        """Whether a thread is in a call that does not return."""
        return max(self.engine.age_seconds, self.transfer.age_seconds) > self._max_step_seconds

    async def stop(self) -> bool:
        """False where a thread is in a call still: only the end of the process ends that."""
        await self._peers.close()
        stopping = asyncio.to_thread(self.engine.stop), asyncio.to_thread(self.transfer.stop)
        return all(await asyncio.gather(*stopping))

    async def drain(self) -> None:
        """Takes no turn any more, and returns once those under way have ended and nobody reads what they leased."""
        self._draining = True
        if self.hangs:
            return
        with suppress(UnavailableError):  # the engine has failed, and all of them with it
            while (await asyncio.wrap_future(self.engine.post(Engine.state))).in_use:
                await asyncio.sleep(_DRAIN_POLL_SECONDS)

    async def turn(self, spec: TurnSpec) -> WorkerTurn:
        """Makes a turn that holds its adapter's weights: a later reload, eviction or removal does not touch it.

        Raises UnavailableError while the worker drains, InvalidInputError for bad tokens, and what
        `AdapterHost.weights` raises."""
        if self._draining:
            raise UnavailableError(f"worker {self.identity.worker_id} drains")
        self._check_tokens(spec.token_ids)
        adapter = None
        if spec.needs_weights:
            adapter = await self.adapters.weights(spec.adapter, spec.adapter_digest, spec.adapter_mode)
        sources = spec.sources if self._prefix_reuse else ()
        events = EventQueue(spec.min_delta_tokens)
        request = Request(
            request_id=RequestId(f"{spec.turn_id}/{secrets.token_hex(4)}"),
            token_ids=list(spec.token_ids),
            adapter=adapter,
            writer=spec.adapter,
            sampling=spec.sampling,
            root=self._root(spec.tenant, adapter),
            block_size=self.identity.block_size,
            sink=events.put,
            prefill_only=spec.prefill_only,
            await_landing=spec.await_landing,
            num_source_blocks=max((source.num_blocks for source in sources), default=0),
            num_earlier_output=spec.num_earlier_output,
            lease_from_block=spec.lease_from_block,
            lease_id=spec.lease_id,
        )
        fetch = BlockFetch(self._peers, self.transfer, self.fetches, spec.tenant, spec.turn_id)
        return WorkerTurn(self.engine, request, events, fetch, sources, self._metrics.queue_seconds.observe)

    def _root(self, tenant: str, adapter: LoraWeights | None) -> BlockHash:
        private = adapter is not None and adapter.mode == AdapterMode.PRIVATE
        return root_hash(self.identity.fingerprint, tenant, adapter.digest if adapter and private else "")

    def _check_tokens(self, token_ids: Sequence[int]) -> None:
        if not token_ids:
            raise InvalidInputError("the prompt is empty")
        if max(token_ids) >= self.identity.vocab_size:
            raise InvalidInputError(
                f"token id {max(token_ids)} is outside the vocabulary [0, {self.identity.vocab_size})"
            )
