"""Which workers take a turn, from who is there, what they have loaded and what they hold."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from icarus.cache.hashing import BlockNames, root_hash
from icarus.cache.index import PrefixIndex
from icarus.errors import FailedPreconditionError, IcarusError, NotFoundError, UnavailableError
from icarus.types import AdapterInfo, AdapterMode, BlockSource, Role, WorkerId
from icarus_gateway.cluster.placement import Candidate, Weights, place, rank_sources
from icarus_gateway.cluster.worker import Worker
from icarus_gateway.cluster.workers import WorkerTable


@dataclass(frozen=True)
class Route:
    """Who serves one attempt at a turn, and who may have blocks of its prompt."""

    decode: Worker
    prefill: Worker | None
    decode_sources: tuple[BlockSource, ...]
    prefill_sources: tuple[BlockSource, ...]
    names: BlockNames
    """Of the prompt's blocks."""


class Router:
    """Picks workers. `base_model` is the name of the model that needs no adapter."""

    def __init__(
        self,
        workers: WorkerTable,
        index: PrefixIndex,
        base_model: str,
        weights: Weights,
    ):
        self._workers = workers
        self._index = index
        self._base_model = base_model
        self._weights = weights

    def adapter(self, model: str) -> AdapterInfo | None:
        """The specialist of that name; None for the base model.

        Raises NotFoundError naming what there is, UnavailableError where no decode worker is there to ask, or none of
        those that have it.
        """
        if model == self._base_model:
            return None
        for worker in self._workers.require_live(Role.DECODE):
            if model in worker.adapters:
                return worker.adapters[model]
        if any(model in worker.adapters for worker in self._workers.known(Role.DECODE)):
            raise _nobody_can_be_reached(model)
        known = ", ".join([self._base_model, *sorted(self._workers.adapters())])
        raise NotFoundError(f"model {model!r} is not here; there are: {known}")

    def route(
        self,
        tenant: str,
        token_ids: Sequence[int],
        max_new_tokens: int,
        adapter: AdapterInfo | None,
        excluded: Collection[str] = (),
        known: BlockNames | None = None,
    ) -> Route:
        """Picks workers for a prompt and at most `max_new_tokens` after it, those of `excluded` (instance ids) left
        out. `known`: names of the prompt's blocks.

        Raises UnavailableError where no decode worker is left that has the adapter and a pool that can hold the turn,
        FailedPreconditionError where the adapter's name stands for other weights by now.
        """
        decoders = self._decoders(len(token_ids) + max_new_tokens, adapter, excluded)
        private = adapter if adapter is not None and adapter.mode is AdapterMode.PRIVATE else None
        prefillers = [
            worker
            for worker in self._workers.live(Role.PREFILL)
            if _has_weights(worker, private) and worker.info.instance_id not in excluded
        ]
        block_size = decoders[0].info.block_size
        root = root_hash(decoders[0].info.cache_fingerprint, tenant, private.digest if private else "")
        live = {worker.worker_id: worker for worker in self._workers.live()}
        if known is None or (known.root, known.block_size) != (root, block_size):
            known = BlockNames(root, block_size)
        names = known.extended(token_ids)
        matched = self._index.match(names.hashes)
        num_blocks = {worker_id: count for worker_id, count in matched.items() if worker_id in live}
        placement = place(
            len(token_ids),
            {worker_id: count * block_size for worker_id, count in num_blocks.items()},
            [_candidate(worker, adapter) for worker in decoders],
            [_candidate(worker, private) for worker in prefillers],
            self._weights,
        )

        def sources(reader: WorkerId) -> tuple[BlockSource, ...]:
            ranked = rank_sources(num_blocks, reader)
            return tuple(BlockSource(name, live[name].info.address, num_blocks[name]) for name in ranked)

        return Route(
            decode=live[placement.decode],
            prefill=live[placement.prefill] if placement.prefill else None,
            decode_sources=sources(placement.decode),
            prefill_sources=sources(placement.prefill) if placement.prefill else (),
            names=names,
        )

    def _decoders(self, num_tokens: int, adapter: AdapterInfo | None, excluded: Collection[str]) -> list[Worker]:
        """Where no pool is large enough, not even one that cannot be reached now, a worker is left to refuse."""
        self._workers.require_live(Role.DECODE)
        having = [worker for worker in self._workers.known(Role.DECODE) if _has_weights(worker, adapter)]
        suitable = [worker for worker in having if _can_ever_hold(worker, num_tokens)] or having
        here = [w for w in suitable if self._workers.is_live(w) and w.info.instance_id not in excluded]
        if not here:
            raise self._nobody(adapter)
        return here

    def _nobody(self, adapter: AdapterInfo | None) -> IcarusError:
        held = self._workers.adapters().get(adapter.name) if adapter else None
        if adapter and held and held.digest != adapter.digest:
            return FailedPreconditionError(
                f"adapter {adapter.name!r} was replaced: no worker that is left has the weights that the turn began "
                f"with (digest {adapter.digest}); ask again for an answer by the new ones (digest {held.digest})"
            )
        return _nobody_can_be_reached(adapter.name if adapter else self._base_model)


def _nobody_can_be_reached(model: str) -> UnavailableError:
    return UnavailableError(f"no decode worker that can serve this turn of {model!r} can be reached now; try again")


def _can_ever_hold(worker: Worker, num_tokens: int) -> bool:
    """Whether all of its pool takes the prompt and the longest answer, whose last token gets no KV."""
    return num_tokens - 1 <= worker.info.num_blocks * worker.info.block_size


def _has_weights(worker: Worker, adapter: AdapterInfo | None) -> bool:
    """By digest: a turn keeps the weights that it began with, whatever the name means by now."""
    if adapter is None:
        return True
    loaded = worker.adapters.get(adapter.name)
    return loaded is not None and (loaded.digest, loaded.mode) == (adapter.digest, adapter.mode)


def _candidate(worker: Worker, adapter: AdapterInfo | None) -> Candidate:
    """`adapter`: the one whose weights the turn needs on this worker."""
    return Candidate(
        worker_id=worker.worker_id,
        load=worker.load,
        available_tokens=worker.available_blocks * worker.info.block_size,
        resident=adapter is None or worker.adapters[adapter.name].resident,
    )
