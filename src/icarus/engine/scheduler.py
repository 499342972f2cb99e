"""Which rows the next step computes: policy, no tensors.

Order of a step: requests that decode first, then chunks of prefills with the rows that are left, oldest first. None
starves where a step may have twice as many rows as requests may run (`load_config` requires it): a request decodes with
two rows at most, so a step has room for all that do, and for some of a prefill beside them.

Requests are admitted in order of arrival while the pool has room for their prompt. When a running request needs a block
and the pool has none, the youngest running request gives its blocks up and waits again (it keeps its tokens). Requests
that land are younger still, but a read may write to their blocks, which nobody here knows, so nobody takes them: while
there are some, the youngest running request keeps its own blocks and pauses. Each of them ends, or runs and then gives
way, in time; meanwhile nobody is admitted, since that leaves a block for each request that runs.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from icarus.cache.pool import BlockPool
from icarus.engine.request import Phase, Request
from icarus.errors import OverloadedError
from icarus.types import BlockId


@dataclass(frozen=True)
class ScheduledRows:
    """What a request does in one step: writes KV at positions [num_kv, num_kv + num_writes), then samples or not."""

    request: Request
    num_writes: int
    """0 with `sample`: a read-only row, since the KV of the last token is there already."""
    sample: bool

    @property
    def has_read_row(self) -> bool:
        """Whether what is sampled is a row of its own, which writes nothing: a shared specialist's, beside the last
        write row, and everybody's where that row's KV is there already. Else the last write row is sampled itself."""
        return self.sample and (self.request.is_shared or self.num_writes == 0)

    @property
    def num_rows(self) -> int:
        """Rows that are computed, of both streams."""
        return self.num_writes + self.has_read_row


class Scheduler:
    """Holds every request of the engine. Owned by the engine thread."""

    def __init__(self, pool: BlockPool, max_batch_tokens: int, max_running: int, max_waiting: int, prefix_reuse: bool):
        self._pool = pool
        self._max_batch_tokens = max_batch_tokens
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._prefix_reuse = prefix_reuse
        self.waiting: deque[Request] = deque()
        self.landing: list[Request] = []
        self.running: list[Request] = []
        """Oldest first."""
        self.preemptions = 0

    def __iter__(self) -> Iterator[Request]:
        yield from self.waiting
        yield from self.landing
        yield from self.running

    @property
    def num_promised_blocks(self) -> int:
        """Blocks that the prefills here will end in leases of."""
        return sum(request.num_to_lease for request in self if request.prefill_only)

    def add(self, request: Request) -> None:
        """Raises OverloadedError when the queue is full."""
        if len(self.waiting) >= self._max_waiting:
            raise OverloadedError(f"{len(self.waiting)} requests wait for room already ([engine] max_waiting)")
        self.waiting.append(request)

    def admit(self) -> list[Request]:
        """Moves requests from waiting to landing, their cached prefix matched and their prompt's blocks reserved."""
        admitted = []
        while self.waiting and len(self.running) + len(self.landing) < self._max_running:
            if not self._reserve(self.waiting[0]):
                break
            request = self.waiting.popleft()
            request.phase = Phase.LANDING
            self.landing.append(request)
            admitted.append(request)
        return admitted

    def start(self, request: Request) -> None:
        """Moves a request from landing to running."""
        self.landing.remove(request)
        request.phase = Phase.RUNNING
        self.running.append(request)

    def remove(self, request: Request) -> None:
        """Takes a request out, wherever it is, and releases its blocks."""
        queue = {Phase.WAITING: self.waiting, Phase.LANDING: self.landing, Phase.RUNNING: self.running}[request.phase]
        queue.remove(request)
        self._release_blocks(request)
        request.phase = Phase.DONE

    def preempt(self, request: Request) -> None:
        """Sends an admitted request back to the head of the queue, without blocks; named ones may be found again."""
        (self.landing if request.phase == Phase.LANDING else self.running).remove(request)
        self._release_blocks(request)
        request.phase = Phase.WAITING
        self.waiting.appendleft(request)
        self.preemptions += 1

    def quarantine(self, request: Request, block_ids: Sequence[BlockId]) -> None:
        """Takes blocks that a posted read may still write to away from their request."""
        self._pool.quarantine(block_ids)
        gone = set(block_ids)
        request.block_ids = [block_id for block_id in request.block_ids if block_id not in gone]

    def schedule(self) -> list[ScheduledRows]:
        """The rows of the next step; empty when there is nothing to compute, or no block to compute it into."""
        budget = self._max_batch_tokens
        scheduled: list[ScheduledRows] = []
        by_length = sorted(self.running, key=lambda request: request.num_missing > 1)
        for request in by_length:
            if request.phase != Phase.RUNNING or budget == 0:
                continue
            rows = self._rows(request, budget)
            if not self._make_room(request, rows):
                continue
            scheduled.append(rows)
            budget -= rows.num_rows
        return [rows for rows in scheduled if rows.request.phase == Phase.RUNNING]

    def _rows(self, request: Request, budget: int) -> ScheduledRows:
        """As many as there is budget for; where it ends before a read row, that one is left to the next step."""
        num_writes = min(request.num_missing, budget)
        wanted = num_writes == request.num_missing and not request.prefill_only
        rows = ScheduledRows(request, num_writes, sample=wanted)
        return rows if rows.num_rows <= budget else replace(rows, sample=False)

    def _reserve(self, request: Request) -> bool:
        """Leaves a block for each running request to grow into, or the newcomer would soon be preempted for them."""
        matched = self._pool.match(request.block_hashes) if self._prefix_reuse else []
        self._pool.reference(matched)
        needed = request.num_blocks_for(request.num_target) - len(matched)
        room = self._pool.num_available >= needed + len(self.running)
        rest = self._pool.allocate(needed) if room else None
        if rest is None:
            self._pool.release(matched)
            return False
        request.block_ids = matched + rest
        request.num_named = len(matched)
        request.num_kv = len(matched) * request.block_size
        return True

    def _make_room(self, request: Request, rows: ScheduledRows) -> bool:
        """Gives the request the blocks that its rows need, taking them from the youngest; False if there are none."""
        needed = request.num_blocks_for(request.num_kv + rows.num_writes) - len(request.block_ids)
        if needed <= 0:
            return True
        while (blocks := self._pool.allocate(needed)) is None:
            victim = self.running[-1]
            if victim is request and self.landing:
                return False
            self.preempt(victim)
            if victim is request:
                return False
        request.block_ids += blocks
        return True

    def _release_blocks(self, request: Request) -> None:
        self._pool.release(request.block_ids)
        request.block_ids = []
        request.num_kv = request.num_named = 0
