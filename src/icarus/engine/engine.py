"""The step: schedule, run, postprocess. And what happens to requests and leases between steps.

`Engine` has no thread and no lock of its own: `thread.py` runs it, tests call it directly.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from icarus.cache.leases import LeaseTable
from icarus.cache.pool import BlockPool
from icarus.engine.request import Admitted, Failed, Finished, Landing, Phase, Prefilled, PromptRead, Request, Sampled
from icarus.engine.runner import DeviceFailedError, Runner
from icarus.engine.scheduler import ScheduledRows, Scheduler
from icarus.engine.step_report import StepReport, count_rows
from icarus.errors import InvalidInputError, OverloadedError, UnavailableError
from icarus.types import BlockHash, BlockId, FinishReason, Grant, LeaseId, PoolCounts, RequestId

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineState:
    """What the debug RPC and heartbeats report."""

    pool: PoolCounts
    private_blocks: int
    """Blocks that caches of each specialist's own would hold, for what is in use or cached here."""
    leased_blocks: int
    kv_written_tokens: int
    kv_written_by: Mapping[str, int]
    """By the specialist whose turn it was ("" for the base)."""
    running_requests: int
    waiting_requests: int
    leases_held: int
    leases_granted: int
    leases_released: int
    leases_expired: int
    preemptions: int
    evicted_blocks: int


class Engine:
    """Sole owner of scheduler, block tables, pool and leases. Every method runs on the engine thread."""

    def __init__(
        self,
        runner: Runner,
        pool: BlockPool,
        scheduler: Scheduler,
        leases: LeaseTable,
        instance_id: str,
        max_leased_blocks: int,
        clock: Callable[[], float] = time.monotonic,
        hold_admission: Callable[[], bool] = lambda: False,
        on_step: Callable[[StepReport], None] = lambda report: None,
    ):
        """While `hold_admission` says so, requests wait; it is asked where some do. `on_step` must be quick."""
        self._runner = runner
        self._scheduler = scheduler
        self._leases = leases
        self._instance_id = instance_id
        self._max_leased_blocks = max_leased_blocks
        self._clock = clock
        self._hold_admission = hold_admission
        self._on_step = on_step
        self._requests: dict[RequestId, Request] = {}
        self.pool = pool

    @property
    def has_work(self) -> bool:
        return bool(self._scheduler.running)

    @property
    def running(self) -> Sequence[Request]:
        """The running batch, oldest first."""
        return self._scheduler.running

    # -- requests ------------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Queues a request; its sink hears the rest. Raises InvalidInputError if it can never fit the pool and
        OverloadedError if there is no room for it now."""
        self._check_fits(request)
        if request.prefill_only:  # it ends in a lease
            self._check_lease_cap(len(self._leases.references()), request.num_to_lease)
        self._scheduler.add(request)
        self._requests[request.request_id] = request
        self._admit()

    def resume_admission(self) -> None:
        """`hold_admission` has changed its mind."""
        self._admit()

    def land(self, request_id: RequestId, landing: Landing) -> None:
        """Ends a request's wait: the blocks of `landing` follow its local ones and are valid; the rest is computed."""
        request = self._requests.get(request_id)
        if request is None or request.phase != Phase.LANDING:
            return
        first = request.num_named
        for index, writer in enumerate(landing.writers, start=first):
            self.pool.name(request.block_ids[index], request.block_hashes[index], writer)
        request.num_named = first + len(landing.writers)
        self.pool.note_user(request.block_ids[first : request.num_named], request.writer)
        request.num_kv = request.num_named * request.block_size
        request.remote_tokens = landing.num_remote_tokens
        remote_writers = landing.writers[: landing.num_remote_tokens // request.block_size]
        request.written_under += _cross_tokens(request, remote_writers)
        self._start(request)
        self._admit()

    def finish(self, request_id: RequestId) -> None:
        """Ends a running request normally, now: the caller found a stop string."""
        request = self._requests.get(request_id)
        if request is not None:
            self._finish(request, FinishReason.STOP)
            self._admit()

    def abort(self, request_id: RequestId, unsettled: Sequence[BlockId] = ()) -> None:
        """Drops a request in any phase. Its blocks in `unsettled` are under a posted read: they are quarantined.
        A prefill that ended while its caller went away has left a lease that nobody knows of: it ends too."""
        request = self._requests.pop(request_id, None)
        if request is not None:
            self._quarantine(request, unsettled)
            self._scheduler.remove(request)
        elif lease_id := self._leases.of_prefill(request_id):
            self.pool.release(self._leases.release(lease_id, self._clock()))
        self._admit()

    def abandon_read(self, request_id: RequestId, unsettled: Sequence[BlockId]) -> None:
        """A read into these blocks of a landing request timed out and may still write: the request starts over
        without them."""
        request = self._requests[request_id]
        self._quarantine(request, unsettled)
        self._scheduler.preempt(request)
        self._admit()

    def settle(self, block_ids: Iterable[BlockId]) -> None:
        """The read into these quarantined blocks is over."""
        self.pool.settle(block_ids)
        self._admit()

    def fail_all(self, error: Exception) -> None:
        """Tells every request that it failed; the books are left as they are. For an engine that can go on no more."""
        for request in self._requests.values():
            request.sink(Failed(error))

    # -- leases --------------------------------------------------------------------------------------------------

    def acquire_lease(self, block_hashes: Sequence[BlockHash], first_block: int) -> Grant:
        """Leases the longest held prefix of `block_hashes`, possibly nothing (a grant without blocks has no lease).
        Raises OverloadedError past the cap on leased blocks."""
        block_ids = self.pool.match(block_hashes)
        leased = self._leases.references()
        num_more = sum(block_id not in leased for block_id in block_ids)
        self._check_lease_cap(len(leased), num_more)
        return self._grant(block_ids, block_hashes, first_block)

    def renew_lease(self, lease_id: LeaseId, now: float) -> float:
        """Seconds that the lease lasts from `now`: when it was asked for, which may be a step ago. Raises
        FailedPreconditionError if it had lapsed then."""
        self._leases.renew(lease_id, now)
        return self._leases.duration_seconds

    def release_lease(self, lease_id: LeaseId, now: float) -> None:
        """Raises FailedPreconditionError if the lease had lapsed `now`, when its end was asked for, or was swept since:
        its blocks may have been overwritten during the read."""
        self.pool.release(self._leases.release(lease_id, now))
        self._admit()

    def expire_leases(self) -> None:
        """Frees the blocks of leases whose time is over."""
        for block_ids in self._leases.expire(self._clock()):
            logger.warning("a lease of %d blocks expired before its reader released it", len(block_ids))
            self.pool.release(block_ids)
            self._admit()

    # -- the step ------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One batch through the model."""
        scheduled = self._scheduler.schedule()
        if scheduled:
            tokens = iter(self._run(scheduled))
            for rows in scheduled:
                self._postprocess(rows, next(tokens) if rows.sample else None)
        self._admit()

    def _run(self, scheduled: list[ScheduledRows]) -> list[Sampled | Failed]:
        started = time.monotonic()
        try:
            tokens = self._runner.run(scheduled)
        except DeviceFailedError:
            raise  # and end the engine: every later step would fail as well
        except Exception as error:
            logger.exception("a step of %d requests failed", len(scheduled))
            for rows in scheduled:
                self._fail(rows.request, error)
            scheduled.clear()
            return []
        self._on_step(StepReport(time.monotonic() - started, len(scheduled), count_rows(scheduled)))
        return tokens

    def _postprocess(self, rows: ScheduledRows, sampled: Sampled | Failed | None) -> None:
        request = rows.request
        if isinstance(sampled, Failed):  # before what the step wrote gets a name
            self._fail(request, sampled.error)
            return
        request.num_kv += rows.num_writes
        self._name_full_blocks(request)
        if sampled is not None:
            self._append(request, sampled)
        elif request.prefill_only and request.num_missing == 0:
            self._finish_prefill(request)

    def _append(self, request: Request, sampled: Sampled) -> None:
        if request.num_output == request.num_earlier_output:
            request.sink(PromptRead(request.account))
        request.token_ids.append(sampled.token_id)
        request.extend_hashes()
        request.sink(sampled)
        if sampled.token_id in request.sampling.stop_token_ids:
            self._finish(request, FinishReason.STOP)
        elif request.num_output >= request.sampling.max_tokens:
            self._finish(request, FinishReason.LENGTH)

    def _name_full_blocks(self, request: Request) -> None:
        for index in range(request.num_named, request.num_kv // request.block_size):
            self.pool.name(request.block_ids[index], request.block_hashes[index], request.writer)
            self.pool.note_user(request.block_ids[index : index + 1], request.writer)
            request.num_named = index + 1

    # -- the books -----------------------------------------------------------------------------------------------

    def check(self) -> EngineState:
        """The engine's state. Raises IntegrityError if the pool's books do not balance."""
        owned: Counter[BlockId] = self._leases.references()
        for request in self._scheduler:
            owned.update(request.block_ids)
        return self._state(self.pool.check(owned))

    def state(self) -> EngineState:
        """The engine's state, unchecked."""
        return self._state(self.pool.counts())

    def _state(self, counts: PoolCounts) -> EngineState:
        return EngineState(
            pool=counts,
            private_blocks=counts.used + counts.cached + self.pool.num_extra_copies,
            leased_blocks=len(self._leases.references()),
            kv_written_tokens=self._runner.kv_rows_written,
            kv_written_by=dict(self._runner.written_by),
            running_requests=len(self._scheduler.running) + len(self._scheduler.landing),
            waiting_requests=len(self._scheduler.waiting),
            leases_held=len(self._leases),
            leases_granted=self._leases.granted,
            leases_released=self._leases.released,
            leases_expired=self._leases.expired,
            preemptions=self._scheduler.preemptions,
            evicted_blocks=self.pool.evictions,
        )

    # -- helpers -------------------------------------------------------------------------------------------------

    def _check_fits(self, request: Request) -> None:
        most = len(request.token_ids)
        if not request.prefill_only:
            most += request.sampling.max_tokens - request.num_earlier_output
        if request.num_blocks_for(most) > self.pool.num_blocks:
            raise InvalidInputError(
                f"{most} tokens (prompt and answer) need {request.num_blocks_for(most)} blocks of "
                f"{request.block_size}; the pool of this worker has {self.pool.num_blocks} ([cache] num_blocks)"
            )

    def _check_lease_cap(self, num_leased: int, num_more: int) -> None:
        """Prefills that are here already end in leases of their own: their blocks are promised."""
        num_promised = sum(request.num_to_lease for request in self._scheduler if request.prefill_only)
        if num_leased + num_promised + num_more > self._max_leased_blocks:
            raise OverloadedError(
                f"{num_leased} blocks are leased and {num_promised} promised to prefills, of at most "
                f"{self._max_leased_blocks}; {num_more} more were asked for"
            )

    def _admit(self) -> None:
        if self._scheduler.waiting and self._hold_admission():
            return
        # A prefill that is all cached ends as it is admitted, and makes room.
        while (admitted := self._scheduler.admit()) or self._fail_what_cannot_fit():
            for request in admitted:
                if request.was_admitted:
                    self._readmit(request)
                else:
                    self._announce_admission(request)

    def _fail_what_cannot_fit(self) -> bool:
        """The head of the queue, if quarantine leaves too few blocks for it: others would wait behind it for a read
        that may never settle. Whether there was one."""
        head = next(iter(self._scheduler.waiting), None)
        usable = self.pool.num_blocks - self.pool.num_quarantined
        if head is None or (needed := head.num_blocks_for(head.num_target)) <= usable:
            return False
        error = UnavailableError(
            f"the turn needs {needed} blocks; {self.pool.num_quarantined} of this worker's {self.pool.num_blocks} are "
            "under reads that hang"
        )
        self._fail(head, error)
        return True

    def _readmit(self, request: Request) -> None:
        if request.num_output == request.num_earlier_output:  # nobody was told yet what was reused
            request.local_tokens = min(request.local_tokens, request.num_kv)
            request.remote_tokens = min(request.remote_tokens, request.num_kv - request.local_tokens)
            self._count_reuse(request)
        self._start(request)

    def _announce_admission(self, request: Request) -> None:
        request.was_admitted = True
        num_local = request.num_named
        request.local_tokens = request.num_kv
        self._count_reuse(request)
        landing = request.await_landing or request.num_source_blocks > num_local
        hashes = tuple(request.block_hashes)
        request.sink(Admitted(num_local, tuple(request.block_ids), hashes, landing))
        if not landing:
            self._start(request)

    def _count_reuse(self, request: Request) -> None:
        """Of a request that holds what was found here and nothing else yet."""
        found = request.block_ids[: request.num_named]
        self.pool.note_user(found, request.writer)
        reused = found[: (request.local_tokens + request.remote_tokens) // request.block_size]
        request.written_under = _cross_tokens(request, map(self.pool.writer, reused))

    def _start(self, request: Request) -> None:
        self._scheduler.start(request)
        if request.prefill_only and request.num_missing == 0:
            self._finish_prefill(request)

    def _finish(self, request: Request, reason: FinishReason) -> None:
        self._drop(request)
        request.sink(Finished(reason, request.account, self.pool.changes.next_sequence))

    def _finish_prefill(self, request: Request) -> None:
        first = request.lease_from_block
        grant = self._grant(request.block_ids[first:], request.block_hashes[first:], first, request)
        self._drop(request)
        request.sink(Prefilled(grant, request.account))

    def _fail(self, request: Request, error: Exception) -> None:
        self._drop(request)
        request.sink(Failed(error))

    def _drop(self, request: Request) -> None:
        del self._requests[request.request_id]
        self._scheduler.remove(request)

    def _quarantine(self, request: Request, block_ids: Sequence[BlockId]) -> None:
        self.pool.quarantine(block_ids)
        gone = set(block_ids)
        request.block_ids = [block_id for block_id in request.block_ids if block_id not in gone]

    def _grant(
        self,
        block_ids: Sequence[BlockId],
        block_hashes: Sequence[BlockHash],
        first_block: int,
        prefill: Request | None = None,
    ) -> Grant:
        """`block_hashes`: the blocks' names, which may go on after them. A block may have lost its to a twin."""
        if not block_ids:
            return Grant(LeaseId(""), self._instance_id, 0.0, first_block)
        self.pool.reference(block_ids)
        made_by, wanted, writer = (
            (prefill.request_id, prefill.lease_id, prefill.writer) if prefill else (None, None, "")
        )
        lease_id = self._leases.grant(block_ids, self._clock(), made_by, wanted)
        writers = tuple(self.pool.writer(block_id, otherwise=writer) for block_id in block_ids)
        return Grant(
            lease_id,
            self._instance_id,
            self._leases.duration_seconds,
            first_block,
            tuple(block_ids),
            writers,
            block_hashes[len(block_ids) - 1],
        )


def _cross_tokens(request: Request, writers: Iterable[str]) -> Counter[str]:
    """Tokens of blocks that another specialist's turn completed first, by that specialist."""
    blocks = Counter(writer for writer in writers if writer != request.writer)
    return Counter({writer: count * request.block_size for writer, count in blocks.items()})
