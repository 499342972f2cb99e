"""The step: schedule, run, postprocess. And what happens to requests and leases between steps.

`Engine` has no thread and no lock of its own: `thread.py` runs it, tests call it directly.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence

from icarus.cache.pool import BlockPool
from icarus.engine.events import Admitted, Failed, Finished, Prefilled, PromptRead, Sampled
from icarus.engine.lender import Lender
from icarus.engine.request import Landing, Phase, Request
from icarus.engine.runner import DeviceFailedError, Runner
from icarus.engine.scheduler import ScheduledRows, Scheduler
from icarus.engine.state import EngineState, read_state
from icarus.engine.step_report import StepReport, count_rows
from icarus.errors import InvalidInputError, OverloadedError, UnavailableError
from icarus.model.device_errors import is_out_of_memory
from icarus.types import BlockHash, BlockId, FinishReason, Grant, LeaseId, PoolCounts, RequestId

logger = logging.getLogger(__name__)


class Engine:
    """Sole owner of scheduler, block tables, pool and leases. Every method runs on the engine thread.

    A turn's way, in the order of this file: submit, admit, land, step after step, end.
    """

    def __init__(
        self,
        runner: Runner,
        pool: BlockPool,
        scheduler: Scheduler,
        lender: Lender,
        hold_admission: Callable[[], bool] = lambda: False,
        on_step: Callable[[StepReport], None] = lambda report: None,
    ):
        """While `hold_admission` says so, requests wait; it is asked where some do. `on_step` must be quick."""
        self._runner = runner
        self._scheduler = scheduler
        self._lender = lender
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

    # -- submit --------------------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Queues a request; its sink hears the rest. Raises InvalidInputError if it can never fit the pool and
        OverloadedError if there is no room for it now."""
        self._check_fits(request)
        if request.prefill_only:  # it ends in a lease
            self._lender.check_promise(request.num_to_lease, self._scheduler.num_promised_blocks)
        self._scheduler.add(request)
        self._requests[request.request_id] = request
        self._admit()

    def _check_fits(self, request: Request) -> None:
        """An answer's last token needs no KV: nothing is computed after it."""
        num_answer = 0 if request.prefill_only else request.sampling.max_tokens - request.num_earlier_output
        needed = request.num_blocks_for(request.num_target + max(num_answer - 1, 0))
        if needed > self.pool.num_blocks:
            raise InvalidInputError(
                f"{len(request.token_ids) + num_answer} tokens (prompt and answer) need {needed} blocks of "
                f"{request.block_size}; the pool of this worker has {self.pool.num_blocks} ([cache] num_blocks)"
            )

    # -- admit ---------------------------------------------------------------------------------------------------------

    def resume_admission(self) -> None:
        """`hold_admission` has changed its mind."""
        self._admit()

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

    def _announce_admission(self, request: Request) -> None:
        request.was_admitted = True
        num_local = request.num_named
        self._count_reuse(request)
        landing = request.await_landing or request.num_source_blocks > num_local
        hashes = tuple(request.block_hashes)
        request.sink(Admitted(num_local, tuple(request.block_ids), hashes, landing))
        if not landing:
            self._start(request)

    def _readmit(self, request: Request) -> None:
        if request.num_output == request.num_earlier_output:  # nobody was told yet what was reused
            self._count_reuse(request)
        self._start(request)

    def _count_reuse(self, request: Request) -> None:
        """Of a request that holds what was found here and nothing else yet. A part of it may have landed before, and
        what lies behind the first token that was computed for it is its own."""
        found = request.block_ids[: request.num_named]
        self.pool.note_user(found, request.writer)
        reused = request.num_kv
        if request.staged_tokens or request.kv_written_tokens:
            reused = min(reused, request.local_tokens + request.remote_tokens)
        request.remote_tokens = max(min(request.remote_tokens, reused - request.local_tokens), 0)
        request.local_tokens = reused - request.remote_tokens
        writers = map(self.pool.writer, found[: reused // request.block_size])
        request.written_under = request.cross_tokens(writers)

    # -- land ----------------------------------------------------------------------------------------------------------

    def land(self, request_id: RequestId, landing: Landing) -> None:
        """Ends a request's wait: the blocks of `landing` follow its local ones and are valid; the rest is computed."""
        request = self._requests.get(request_id)
        if request is None or request.phase != Phase.LANDING:
            return
        self._name_blocks(request, landing.writers)
        request.num_kv = request.num_named * request.block_size
        request.remote_tokens = landing.num_remote_tokens
        request.staged_tokens = request.num_kv - request.local_tokens - request.remote_tokens
        remote_writers = landing.writers[: landing.num_remote_tokens // request.block_size]
        request.written_under += request.cross_tokens(remote_writers)
        self._start(request)
        self._admit()

    def abandon_read(self, request_id: RequestId, unsettled: Sequence[BlockId]) -> None:
        """A read into these blocks of a landing request timed out and may still write: the request starts over
        without them."""
        request = self._requests[request_id]
        self._scheduler.quarantine(request, unsettled)
        self._scheduler.preempt(request)
        self._admit()

    def settle(self, block_ids: Iterable[BlockId]) -> None:
        """The read into these quarantined blocks is over."""
        self.pool.settle(block_ids)
        self._admit()

    def _start(self, request: Request) -> None:
        self._scheduler.start(request)
        if request.prefill_only and request.num_missing == 0:
            self._finish_prefill(request)

    # -- step ----------------------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """One batch through the model. False if there was nothing to compute: what runs may have to wait for blocks."""
        if scheduled := self._scheduler.schedule():
            for rows, sampled in zip(scheduled, self._run(scheduled), strict=True):
                self._postprocess(rows, sampled)
        self._admit()
        return bool(scheduled)

    def _run(self, scheduled: Sequence[ScheduledRows]) -> list[Sampled | Failed | None]:
        """What became of each: a token, a failure, or None where no token was wanted."""
        started = time.monotonic()
        try:
            tokens = iter(self._runner.run(scheduled))
        except DeviceFailedError:
            raise  # and end the engine: every later step would fail as well
        except Exception as error:
            logger.exception("a step of %d requests failed", len(scheduled))
            failed = Failed(_out_of_memory(scheduled) if is_out_of_memory(error) else error)
            return [failed] * len(scheduled)
        self._on_step(StepReport(time.monotonic() - started, len(scheduled), count_rows(scheduled)))
        return [next(tokens) if rows.sample else None for rows in scheduled]

    def _postprocess(self, rows: ScheduledRows, sampled: Sampled | Failed | None) -> None:
        request = rows.request
        if isinstance(sampled, Failed):  # before what the step wrote gets a name
            self._fail(request, sampled.error)
            return
        request.num_kv += rows.num_writes
        num_filled = request.num_kv // request.block_size - request.num_named
        self._name_blocks(request, [request.writer] * num_filled)
        if sampled is not None:
            self._append(request, sampled)
        elif request.prefill_only and request.num_missing == 0:
            self._finish_prefill(request)

    def _name_blocks(self, request: Request, writers: Sequence[str]) -> None:
        """A request's next blocks are complete. `writers`: who completed each first."""
        for index, writer in enumerate(writers, start=request.num_named):
            self.pool.name(request.block_ids[index], request.block_hashes[index], writer)
            self.pool.note_user(request.block_ids[index : index + 1], request.writer)
            request.num_named = index + 1

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

    # -- end -----------------------------------------------------------------------------------------------------------

    def finish(self, request_id: RequestId) -> None:
        """Ends a running request normally, now: the caller found a stop string."""
        request = self._requests.get(request_id)
        if request is not None:
            self._finish(request, FinishReason.STOP)
            self._admit()

    def abort(self, request_id: RequestId, unsettled: Sequence[BlockId] = ()) -> None:
        """Drops a request in any phase. Its blocks in `unsettled` are under a posted read: they are quarantined.
        A prefill that ended while its caller went away has left a lease that nobody knows of: it ends too."""
        request = self._requests.get(request_id)
        if request is not None:
            self._scheduler.quarantine(request, unsettled)
            self._drop(request)
        else:
            self._lender.release_prefilled(request_id)
        self._admit()

    def fail_all(self, error: Exception) -> None:
        """Tells every request that it failed; the books are left as they are. For an engine that can go on no more."""
        for request in self._requests.values():
            request.sink(Failed(error))

    def _finish(self, request: Request, reason: FinishReason) -> None:
        self._drop(request)
        request.sink(Finished(reason, request.account, self.pool.changes.next_sequence))

    def _finish_prefill(self, request: Request) -> None:
        grant = self._lender.grant_prefilled(request)
        self._drop(request)
        request.sink(Prefilled(grant, request.account))

    def _fail(self, request: Request, error: Exception) -> None:
        self._drop(request)
        request.sink(Failed(error))

    def _drop(self, request: Request) -> None:
        del self._requests[request.request_id]
        self._scheduler.remove(request)

    # -- leases --------------------------------------------------------------------------------------------------------

    def acquire_lease(self, block_hashes: Sequence[BlockHash], first_block: int) -> Grant:
        """As `Lender.acquire`."""
        return self._lender.acquire(block_hashes, first_block, self._scheduler.num_promised_blocks)

    def renew_lease(self, lease_id: LeaseId, now: float) -> float:
        """As `Lender.renew`."""
        return self._lender.renew(lease_id, now)

    def release_lease(self, lease_id: LeaseId, now: float) -> None:
        """As `Lender.release`."""
        self._lender.release(lease_id, now)
        self._admit()

    def expire_leases(self) -> None:
        """As `Lender.expire`."""
        if self._lender.expire():
            self._admit()

    # -- the books -----------------------------------------------------------------------------------------------------

    def check(self) -> EngineState:
        """The engine's state. Raises IntegrityError if the pool's books do not balance."""
        owned = self._lender.leases.references()
        for request in self._scheduler:
            owned.update(request.block_ids)
        return self._state(self.pool.check(owned))

    def state(self) -> EngineState:
        """The engine's state, unchecked."""
        return self._state(self.pool.counts())

    def _state(self, counts: PoolCounts) -> EngineState:
        return read_state(counts, self.pool, self._scheduler, self._lender.leases, self._runner)


def _out_of_memory(scheduled: Sequence[ScheduledRows]) -> OverloadedError:
    """Gateways take the turns to other workers. It is not raised from torch's error, which keeps the step's tensors."""
    num_rows = sum(rows.num_rows for rows in scheduled)
    return OverloadedError(
        f"the device of this worker is out of memory for a step of {num_rows} rows: lower [engine] max_batch_tokens or "
        "[cache] num_blocks"
    )
