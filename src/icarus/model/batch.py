"""One step's rows: what the engine asks for (`RowPlan`) and the tensors that the model reads (`StepBatch`).

A batch stacks two streams: [write rows of all requests; read rows of all requests]. Requests are sorted by adapter, so
the rows of one adapter are contiguous within each stream.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from icarus_kernels import AttentionRows, LoraRows, LoraSegment, SequenceRows
from numpy.typing import NDArray
from torch import Tensor

from icarus.adapters.lora import LoraWeights
from icarus.types import AdapterMode


@dataclass(frozen=True)
class RowPlan:
    """One request's share of a step.

    encoder-only   num_writes >= 1                    prefill; base and private decode (with `sample`)
    paired         num_writes >= 1 and read_row       the read row is at the last write row's position
    read-only      num_writes == 0 and read_row       the position's KV is in the cache already
    """

    token_ids: Sequence[int]
    """The tokens at positions start, start + 1, ...: max(num_writes, 1) of them."""
    start: int
    num_writes: int
    """Rows that write KV."""
    read_row: bool
    """Whether a row at the last position attends and writes nothing."""
    sample: bool
    """Whether logits are wanted: of the read row if there is one, else of the last write row."""
    block_ids: Sequence[int]
    """The request's block table; covers start + len(token_ids) positions."""
    adapter: LoraWeights | None = None
    """Shared: on the read row alone. Private: on every row."""

    def __post_init__(self) -> None:
        if len(self.token_ids) != max(self.num_writes, 1):
            raise ValueError(f"{len(self.token_ids)} token ids for {self.num_writes} write rows")
        if self.num_writes == 0 and not self.read_row:
            raise ValueError("a plan without write rows needs a read row")
        if self.num_writes and self.read_row and not self.is_shared:
            raise ValueError("only a shared adapter has a read row beside write rows")

    @property
    def is_shared(self) -> bool:
        return self.adapter is not None and self.adapter.mode is AdapterMode.SHARED

    @property
    def last_position(self) -> int:
        return self.start + len(self.token_ids) - 1


@dataclass(frozen=True, eq=False)
class QueryRows:
    """A stack of rows that attend: the whole batch, or those of it that are sampled."""

    index: Tensor | None
    """[rows] int64, which rows of the batch these are; None for all of them."""
    attention: AttentionRows
    adapted: LoraRows | None


@dataclass(frozen=True, eq=False)
class StepBatch:
    """The tensors of one step. Row r < num_writes writes KV; the others only read."""

    token_ids: Tensor
    """[rows] int64."""
    positions: Tensor
    """[rows] int64."""
    slots: Tensor
    """[num_writes] int64: block * block_size + offset."""
    num_writes: int
    every: QueryRows
    sampled: QueryRows
    """The last layer's: nobody reads what the other rows give there."""
    sample_order: Tensor
    """[num_samples] int64: row i of the logits is row sample_order[i] of `sampled`."""

    @classmethod
    def build(
        cls,
        plans: Sequence[RowPlan],
        block_size: int,
        device: str | torch.device,
    ) -> "StepBatch":
        """Stacks at least one plan. Logits come in the order of the plans that sample."""
        rows = _stack(plans)
        sampled_index = [r for r, row in enumerate(rows) if row.is_sample]
        sampled = [rows[r] for r in sampled_index]
        num_writes = sum(plan.num_writes for plan in plans)
        tables = [np.array(plan.block_ids[: plan.last_position // block_size + 1], np.int32) for plan in plans]

        def query_rows(queries: Sequence[_Row], index: Tensor | None) -> QueryRows:
            attention = AttentionRows.build(_sequences(queries, tables), block_size, device)
            return QueryRows(index, attention, LoraRows.build(_adapted(queries), device))

        return cls(
            token_ids=torch.tensor([row.token_id for row in rows], device=device),
            positions=torch.tensor([row.position for row in rows], device=device),
            slots=torch.tensor(_slots(rows[:num_writes], plans, block_size), dtype=torch.int64, device=device),
            num_writes=num_writes,
            every=query_rows(rows, None),
            sampled=query_rows(sampled, torch.tensor(sampled_index, dtype=torch.int64, device=device)),
            sample_order=torch.tensor(_sample_order(sampled), dtype=torch.int64, device=device),
        )


@dataclass(frozen=True, eq=False, slots=True)
class _Row:
    plan: int
    token_id: int
    position: int
    adapter: LoraWeights | None
    is_sample: bool


def _stack(plans: Sequence[RowPlan]) -> list[_Row]:
    """Every row of the batch, in order."""
    order = _by_adapter(plans)
    writes = [
        _Row(
            plan=p,
            token_id=plans[p].token_ids[i],
            position=plans[p].start + i,
            adapter=None if plans[p].is_shared else plans[p].adapter,
            is_sample=plans[p].sample and not plans[p].read_row and i == plans[p].num_writes - 1,
        )
        for p in order
        for i in range(plans[p].num_writes)
    ]
    reads = [
        _Row(p, plans[p].token_ids[-1], plans[p].last_position, plans[p].adapter, plans[p].sample)
        for p in order
        if plans[p].read_row
    ]
    return writes + reads


def _by_adapter(plans: Sequence[RowPlan]) -> list[int]:
    """Indices of the plans: the base, shared adapters, private ones; one adapter's together, in order of appearance."""
    first_seen: dict[LoraWeights | None, int] = {}
    for p, plan in enumerate(plans):
        first_seen.setdefault(plan.adapter, p)

    def key(p: int) -> tuple[int, int]:
        adapter = plans[p].adapter
        kind = 0 if adapter is None else 1 if plans[p].is_shared else 2
        return kind, first_seen[adapter]

    return sorted(range(len(plans)), key=key)


def _slots(writes: Iterable[_Row], plans: Sequence[RowPlan], block_size: int) -> list[int]:
    """Where in the pool each write row's KV goes."""
    return [
        plans[row.plan].block_ids[row.position // block_size] * block_size + row.position % block_size for row in writes
    ]


def _sample_order(sampled: Sequence[_Row]) -> list[int]:
    """Indices of the sampled rows, of which a plan has at most one, in the order of their plans."""
    return sorted(range(len(sampled)), key=lambda i: sampled[i].plan)


def _adapted(rows: Iterable[_Row]) -> list[LoraSegment]:
    """Runs of rows with the same adapter; rows of the base are in none."""
    runs: list[LoraSegment] = []
    for r, row in enumerate(rows):
        if row.adapter is None:
            continue
        if runs and runs[-1].end == r and runs[-1].table is row.adapter.table:
            runs[-1] = LoraSegment(runs[-1].start, r + 1, row.adapter.table)
        else:
            runs.append(LoraSegment(r, r + 1, row.adapter.table))
    return runs


def _sequences(rows: Sequence[_Row], tables: Sequence[NDArray[np.int32]]) -> list[SequenceRows]:
    """One for each plan that has rows here. `tables`: each plan's pages."""
    by_plan: dict[int, list[int]] = {}
    for r, row in enumerate(rows):
        by_plan.setdefault(row.plan, []).append(r)
    return [SequenceRows(ids, [rows[r].position for r in ids], tables[p]) for p, ids in by_plan.items()]
