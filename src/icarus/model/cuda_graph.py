"""Decode steps as CUDA graphs: a forward is hundreds of small launches, which a graph makes one."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from icarus.cache.kv import KVPool
from icarus.model.batch import QueryRows, StepBatch
from icarus.model.device_errors import is_out_of_memory
from icarus.model.padded_batch import DecodeShape, pad
from icarus.model.two_stream import TwoStreamModel

logger = logging.getLogger(__name__)

_LAID_OUT_FOR_KEYS = 8192
"""A longer context is read right, in as many parts."""
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class _Recorded:
    """A forward over `batch`, whose tensors stay where they are, into `logits`, which other graphs share."""

    batch: StepBatch
    graph: torch.cuda.CUDAGraph
    logits: Tensor


class DecodeGraphs:
    """Runs a model's forwards on a GPU: decode batches by replaying the graph of their shape, others as they are.

    A shape is recorded when it comes up first; where there is no memory for that, or for another step beside it, its
    batches run as they are from then on. Owned by one thread.
    """

    def __init__(self, model: TwoStreamModel, kv: KVPool):
        self._model = model
        self._kv = kv
        self._max_pages = min(-(-model.config.context_length // kv.block_size), kv.num_blocks)
        self._recorded: dict[DecodeShape, _Recorded | None] = {}
        """None: there was no memory for it."""
        self._memory = torch.cuda.graph_pool_handle()
        self._logits = torch.empty(0)
        """[rows, vocab_size] float32: where graphs leave their logits."""
        self._stream = torch.cuda.Stream(model.device)
        """Of all recordings: cuBLAS keeps a workspace for each stream that it was used on."""

    def forward(self, batch: StepBatch) -> Tensor:
        """As `TwoStreamModel.forward`, of a batch that was built on the CPU. The logits hold until the next call."""
        self._model.kv_rows_written += batch.num_writes
        shape = DecodeShape.of(batch)
        if shape is None:
            return self._compute(batch)
        padded = pad(batch, shape, _LAID_OUT_FOR_KEYS)
        if shape not in self._recorded:
            self._recorded[shape] = self._record_if_it_fits(shape, padded)
        recorded = self._recorded[shape]
        if recorded is None:
            return self._compute(batch)
        copy_tensors(padded, recorded.batch)
        recorded.graph.replay()
        return recorded.logits[: len(batch.sample_order)]

    def _compute(self, batch: StepBatch) -> Tensor:
        """Without a graph. Where there is no memory for that beside the graphs, they give way."""
        try:
            return self._compute_on_device(batch)
        except Exception as error:
            if not is_out_of_memory(error) or not any(self._recorded.values()):
                raise
        self._drop_graphs()  # here, where the error no longer keeps the tensors of what it ended
        return self._compute_on_device(batch)

    def _compute_on_device(self, batch: StepBatch) -> Tensor:
        return self._model.compute(on_device(batch, self._model.device), self._kv)

    def _drop_graphs(self) -> None:
        """Their shapes are not recorded again: that would take the same memory again."""
        logger.warning(
            "no GPU memory for a step beside the recorded decode steps: steps of their shapes run slower from now on; "
            "a smaller [cache] num_blocks leaves more"
        )
        self._recorded = dict.fromkeys(self._recorded)
        self._memory = torch.cuda.graph_pool_handle()  # the old pool ends with its last graph
        self._logits = torch.empty(0)
        torch.cuda.empty_cache()

    def _record_if_it_fits(self, shape: DecodeShape, padded: StepBatch) -> _Recorded | None:
        try:
            # A capture that cannot begin or end leaves its own stream current.
            with torch.cuda.stream(torch.cuda.current_stream(self._model.device)):
                return self._record(on_device(widen(padded, self._max_pages), self._model.device))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            logger.warning(
                "no GPU memory to record a decode step: steps of its shape run slower; a smaller [cache] num_blocks "
                "leaves more",
                extra={"requests": shape.num_requests, "paired": shape.is_paired, "max_rank": shape.max_rank},
            )
            return None

    def _record(self, batch: StepBatch) -> _Recorded:
        """The batch may be real: to run it again writes the same KV again."""
        stream, caller = self._stream, torch.cuda.current_stream(self._model.device)
        stream.wait_stream(caller)
        try:
            with torch.cuda.stream(stream):
                num_rows, vocab_size = self._model.compute(batch, self._kv).shape  # compiles kernels: a capture cannot
        finally:  # after an error too: whoever waits for the caller's stream waits for what was queued
            caller.wait_stream(stream)
        logits = self._logits_room(num_rows, vocab_size)
        graph = torch.cuda.CUDAGraph()
        # The transfer thread may call CUDA meanwhile.
        with torch.cuda.graph(graph, pool=self._memory, stream=stream, capture_error_mode="thread_local"):
            logits.copy_(self._model.compute(batch, self._kv))
        return _Recorded(batch, graph, logits)

    def _logits_room(self, num_rows: int, vocab_size: int) -> Tensor:
        """Of all graphs, for logits hold until the next call. Those that are there already keep the smaller room."""
        if num_rows > len(self._logits):
            num_rows_in_all = max(num_rows, 2 * len(self._logits))
            self._logits = torch.empty(num_rows_in_all, vocab_size, device=self._model.device)
        return self._logits[:num_rows]


def on_device(value: T, device: torch.device) -> T:
    """A copy of a tensor there, or of a dataclass of tensors, however nested."""
    if isinstance(value, Tensor):
        return cast(T, value.to(device, copy=True))
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: on_device(getattr(value, f.name), device) for f in fields(value) if f.init})
    return value


def widen(batch: StepBatch, max_pages: int) -> StepBatch:
    """With block tables of `max_pages` columns; those added hold anything, as no key lies there."""

    def widened(rows: QueryRows) -> QueryRows:
        tables = rows.attention.block_tables
        wide = tables.new_zeros((len(tables), max_pages))
        wide[:, : tables.shape[1]] = tables
        return replace(rows, attention=replace(rows.attention, block_tables=wide))

    return replace(batch, every=widened(batch.every), sampled=widened(batch.sampled))


def copy_tensors(source: StepBatch, target: StepBatch) -> None:
    """Between batches of one shape; the target's block tables may be wider."""
    for new, old in zip(_tensors(source), _tensors(target), strict=True):
        old[..., : new.shape[-1]].copy_(new, non_blocking=True)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
