"""Runs scheduled rows through the model: tensors, no policy."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from icarus.cache.kv import KVPool
from icarus.engine.events import Failed, Sampled
from icarus.engine.sampler import sample
from icarus.engine.scheduler import ScheduledRows
from icarus.errors import IcarusError
from icarus.model.batch import RowPlan, StepBatch
from icarus.model.cuda_graph import DecodeGraphs
from icarus.model.device_errors import ends_the_device
from icarus.model.two_stream import TwoStreamModel


class DeviceFailedError(IcarusError):
    """The device is lost to this process: what comes after an illegal address or an ECC error fails too, and so does
    a kernel that could not be loaded."""


class Runner:
    """The model and its KV pool. Owned by the engine thread."""

    def __init__(self, model: TwoStreamModel, kv: KVPool, device: str, cuda_graphs: bool = True):
        """`cuda_graphs` matters on a GPU alone."""
        self._model = model
        self._kv = kv
        self._device = torch.device(device)
        self.written_by: Counter[str] = Counter()
        """KV positions written, by the specialist whose turn it was ("" for the base)."""
        self._graphs = DecodeGraphs(model, kv) if cuda_graphs and self._device.type == "cuda" else None

    @property
    def kv_rows_written(self) -> int:
        """KV positions written since the start, counted at the forward call."""
        return self._model.kv_rows_written

    @torch.inference_mode()
    def run(self, scheduled: Sequence[ScheduledRows]) -> list[Sampled | Failed]:
        """Computes the rows; a token for each request that samples, in order, or why it has none. Returns when the
        device is done.

        Raises DeviceFailedError where it can compute no more; what else it raises concerns this batch alone.
        """
        try:
            return self._run(scheduled)
        except Exception as error:
            if ends_the_device(error):
                raise DeviceFailedError(f"{self._device} failed: {error}") from error
            raise

    def _run(self, scheduled: Sequence[ScheduledRows]) -> list[Sampled | Failed]:
        try:
            logits = self._forward([_plan(rows) for rows in scheduled])
            for rows in scheduled:
                rows.request.kv_written_tokens += rows.num_writes
                self.written_by[rows.request.writer] += rows.num_writes
            sampling = [rows.request for rows in scheduled if rows.sample]
            return sample(logits, sampling) if sampling else []
        finally:  # after an error too: its requests' blocks are freed now, and what was queued must not write to them
            if self._device.type == "cuda":
                torch.cuda.current_stream(self._device).synchronize()

    def _forward(self, plans: Sequence[RowPlan]) -> Tensor:
        if self._graphs is not None:
            return self._graphs.forward(StepBatch.build(plans, self._kv.block_size, "cpu"))
        return self._model.forward(StepBatch.build(plans, self._kv.block_size, self._device), self._kv)


def _plan(rows: ScheduledRows) -> RowPlan:
    """docs/architecture.md, "The two streams", has the kinds of rows."""
    request = rows.request
    start = request.num_kv if rows.num_writes else request.num_kv - 1
    return RowPlan(
        token_ids=request.token_ids[start : start + max(rows.num_writes, 1)],
        start=start,
        num_writes=rows.num_writes,
        read_row=rows.has_read_row,
        sample=rows.sample,
        block_ids=request.block_ids,
        adapter=request.adapter if request.is_private or rows.sample else None,
    )
