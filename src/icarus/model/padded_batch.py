"""Decode batches filled up to a few fixed shapes, so that a forward can be recorded once for each."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from icarus_kernels import AttentionRows, LoraRows, LoraSegment
from torch import Tensor

from icarus.model.batch import QueryRows, StepBatch


@dataclass(frozen=True)
class DecodeShape:
    """Room for `num_requests` rows that write KV, for as many that read if `is_paired`, and for adapters of up to
    `max_rank`. Each request samples once."""

    num_requests: int
    is_paired: bool
    max_rank: int
    """0: no row has an adapter."""

    @classmethod
    def of(cls, batch: StepBatch) -> "DecodeShape | None":
        """The smallest shape that holds the batch. None where some request has a chunk, or does not sample."""
        attention, adapted = batch.every.attention, batch.every.adapted
        if not attention.num_decodes == attention.num_sequences == len(batch.sample_order):
            return None
        return cls(
            num_requests=_room(attention.num_sequences),
            is_paired=len(batch.token_ids) > batch.num_writes,
            max_rank=0 if adapted is None else max(_power_of_2(adapted.max_rank), 16),
        )

    @property
    def num_rows(self) -> int:
        return self.num_requests * (1 + self.is_paired)


def _room(num_requests: int) -> int:
    """1, 2, 4, 8, 16, 24, ..."""
    return _power_of_2(num_requests) if num_requests < 8 else -(-num_requests // 8) * 8


def _power_of_2(n: int) -> int:
    """The first that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


def pad(batch: StepBatch, shape: DecodeShape, max_keys: int) -> StepBatch:
    """`batch`, which `shape` holds, with rows and sequences added that do nothing: they have slot -1 and are of no
    sequence, and what they give is undefined. Logits i < len(batch.sample_order) are those of `batch`.

    `max_keys` is for how many keys of a sequence the kernels are laid out. Block tables stay as wide as they are.
    """
    every, sampled = batch.every, batch.sampled
    assert sampled.index is not None
    moves = _Moves(batch.num_writes, shape.num_requests)
    return StepBatch(
        token_ids=moves.stack(batch.token_ids, shape.num_rows),
        positions=moves.stack(batch.positions, shape.num_rows),
        slots=_filled(batch.slots, shape.num_requests, -1),
        num_writes=shape.num_requests,
        every=QueryRows(
            index=None,
            attention=_pad_attention(
                replace(every.attention, row_ids=moves.rows(every.attention.row_ids)),
                shape.num_requests,
                1 + shape.is_paired,
                max_keys,
            ),
            adapted=_pad_adapted(every.adapted, moves.segments, shape),
        ),
        sampled=QueryRows(
            index=_filled(moves.rows(sampled.index), shape.num_requests, 0),
            attention=_pad_attention(sampled.attention, shape.num_requests, 1, max_keys),
            adapted=_pad_adapted(sampled.adapted, iter, shape),
        ),
        sample_order=_filled(batch.sample_order, shape.num_requests, 0),
    )


@dataclass(frozen=True)
class _Moves:
    """Where rows go when `num_writes` write rows get room for `room`: read rows come after it."""

    num_writes: int
    room: int

    def rows(self, rows: Tensor) -> Tensor:
        """In the same dtype, which a product with a bool would widen."""
        return torch.where(rows < self.num_writes, rows, rows + (self.room - self.num_writes))

    def stack(self, values: Tensor, num_rows: int) -> Tensor:
        """The values of all rows at their new places, 0 elsewhere."""
        writes, reads = values.tensor_split((self.num_writes,))
        return torch.cat((_filled(writes, self.room, 0), _filled(reads, num_rows - self.room, 0)))

    def segments(self, segments: Sequence[LoraSegment]) -> Iterator[LoraSegment]:
        """One that has rows of both kinds (a private adapter's) falls in two."""
        gap = self.room - self.num_writes
        for start, end, table in segments:
            if start < self.num_writes:
                yield LoraSegment(start, min(end, self.num_writes), table)
            if end > self.num_writes:
                yield LoraSegment(max(start, self.num_writes) + gap, end + gap, table)


def _pad_attention(rows: AttentionRows, num_sequences: int, max_rows: int, max_keys: int) -> AttentionRows:
    return AttentionRows(
        row_ids=_filled(rows.row_ids, num_sequences * max_rows, 0),
        positions=_filled(rows.positions, num_sequences * max_rows, 0),
        starts=_filled(rows.starts, num_sequences + 1, rows.num_rows),
        block_tables=_filled(rows.block_tables, num_sequences, 0),
        num_decodes=num_sequences,
        max_rows=max_rows,
        max_keys=max_keys,
    )


def _pad_adapted(
    adapted: LoraRows | None, move: Callable[[Sequence[LoraSegment]], Iterator[LoraSegment]], shape: DecodeShape
) -> LoraRows | None:
    """Room for an adapter a request."""
    if adapted is None:
        return None
    segments = tuple(move(adapted.segments))
    entries = torch.stack([segment.table.entries for segment in segments])
    bounds = torch.tensor([segment[:2] for segment in segments], dtype=torch.int32, device=adapted.bounds.device)
    return LoraRows(
        segments=(),
        bounds=_filled(bounds, shape.num_requests, 0),
        entries=_filled(entries, shape.num_requests, 0),
        max_rank=shape.max_rank,
        max_rows=shape.num_requests,
    )


def _filled(values: Tensor, length: int, fill: int) -> Tensor:
    """[n, ...] -> [length, ...]."""
    room = values.new_full((length, *values.shape[1:]), fill)
    room[: len(values)] = values
    return room
