"""What of the CUDA graphs needs no GPU: streams and memory. Stand-ins for torch.cuda's say who waits for whom; whether
a replay gives the same tokens is for tests/engine, on a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import tiny
import torch
from model.setups import last_step, make_setup, new_pool, prefill, tokens

from icarus.model.batch import RowPlan, StepBatch
from icarus.model.cuda_graph import DecodeGraphs

pytestmark = pytest.mark.skipif(tiny.DEVICE != "cpu", reason="the stand-ins are for a model on the CPU")

IDS = tokens(9, seed=1)
BLOCKS = [5, 2, 9]


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return make_setup("llama, group 4, untied", tmp_path_factory.mktemp("model"))


def cuda_error(code: int) -> torch.AcceleratorError:
    """As torch raises it: the code is no argument."""
    error = torch.AcceleratorError("CUDA error: told by its code")
    error.error_code = code
    return error


class Device:
    """Streams that write down what they are asked, and captures that capture nothing. A capture that fails at its end
    leaves its stream current, as torch's does."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.log: list[str] = []
        self.current = self.caller = Stream("caller", self.log)
        self.capture_error: Exception | None = None
        patch.setattr(torch.cuda, "current_stream", lambda *_: self.current)
        patch.setattr(torch.cuda, "Stream", lambda *_: Stream("recording", self.log))
        patch.setattr(torch.cuda, "stream", self.use)
        patch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
        patch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: self.log.append("replay")))
        patch.setattr(torch.cuda, "empty_cache", lambda: self.log.append("empty the cache"))
        patch.setattr(torch.cuda, "graph", self.capture)

    @contextmanager
    def use(self, stream: "Stream") -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def capture(self, graph: object, *, stream: "Stream", **_: object) -> Iterator[None]:
        self.log.append("capture")
        with self.use(stream):
            yield
        if self.capture_error:
            self.current = stream
            raise self.capture_error


class Stream:
    def __init__(self, name: str, log: list[str]):
        self.name, self.log = name, log

    def wait_stream(self, other: "Stream") -> None:
        self.log.append(f"{self.name} waits for {other.name}")


@pytest.mark.parametrize("fits", [0, 1], ids=["in the warm-up", "in the capture"])
def test_without_memory_to_record_a_step_it_is_computed_as_it_is(setup, monkeypatch, caplog, fits):
    device, pool = Device(monkeypatch), new_pool(setup, 4)
    prefill(setup, pool, IDS[:8], BLOCKS, 8)
    batch = StepBatch.build([last_step(setup, pool, "a", IDS, BLOCKS)], 4, "cpu")
    expected, written = setup.model.forward(batch, pool), setup.model.kv_rows_written
    graphs, compute = DecodeGraphs(setup.model, pool), setup.model.compute

    def compute_with_little_memory(step: StepBatch, kv: object) -> torch.Tensor:
        device.log.append(f"compute on {device.current.name}")
        if device.current is not device.caller and device.log.count("compute on recording") > fits:
            raise torch.OutOfMemoryError("no room")
        return compute(step, kv)

    monkeypatch.setattr(setup.model, "compute", compute_with_little_memory)
    assert torch.equal(graphs.forward(batch), expected)
    capture = ["capture", "compute on recording"] if fits else []
    waits = ["recording waits for caller", "compute on recording", "caller waits for recording"]
    assert device.log == [*waits, *capture, "compute on caller"]
    assert torch.equal(graphs.forward(batch), expected)
    assert device.log[-2:] == ["compute on caller"] * 2, "the shape is not tried again"
    assert setup.model.kv_rows_written == written + 2
    assert [record.message for record in caplog.records] == [
        "no GPU memory to record a decode step: steps of its shape run slower; a smaller [cache] num_blocks leaves more"
    ]


def test_a_warm_up_that_fails_is_waited_for(setup, monkeypatch):
    """The requests of the batch end then, and their blocks go to others."""
    device, pool = Device(monkeypatch), new_pool(setup, 4)
    batch = StepBatch.build([last_step(setup, pool, "a", IDS[:1], BLOCKS)], 4, "cpu")
    monkeypatch.setattr(setup.model, "compute", lambda *_: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        DecodeGraphs(setup.model, pool).forward(batch)
    assert device.log == ["recording waits for caller", "caller waits for recording"]


def test_a_graph_that_finds_no_memory_at_its_end_is_not_recorded(setup, monkeypatch, caplog):
    """CUDA makes it, not torch's allocator."""
    device, pool = Device(monkeypatch), new_pool(setup, 4)
    batch = StepBatch.build([last_step(setup, pool, "a", IDS[:1], BLOCKS)], 4, "cpu")
    expected, graphs = setup.model.forward(batch, pool), DecodeGraphs(setup.model, pool)
    device.capture_error = cuda_error(2)
    assert torch.equal(graphs.forward(batch), expected)
    assert device.current is device.caller
    assert ["no GPU memory to record" in record.message for record in caplog.records] == [True]
    device.capture_error = cuda_error(700)
    with pytest.raises(torch.AcceleratorError):
        DecodeGraphs(setup.model, pool).forward(batch)
    assert device.current is device.caller


def test_graphs_share_the_room_for_their_logits(setup, monkeypatch):
    """With a vocabulary of 128,256, they take 131 MB for 256 requests, and there are 35 shapes up to there."""
    Device(monkeypatch)
    pool = new_pool(setup, 4)
    two, one, four = (
        StepBatch.build([last_step(setup, pool, "a", IDS[:1], [block]) for block in range(count)], 4, "cpu")
        for count in (2, 1, 4)
    )
    graphs = DecodeGraphs(setup.model, pool)
    for batch in (two, one, four):
        torch.testing.assert_close(graphs.forward(batch), setup.model.forward(batch, pool))
    places = [graphs.forward(batch).data_ptr() for batch in (two, one, four)]
    assert places[0] == places[1] != places[2]


def test_graphs_give_way_to_a_step_that_has_no_memory_beside_them(setup, monkeypatch, caplog):
    device, pool = Device(monkeypatch), new_pool(setup, 4)
    prefill(setup, pool, IDS[:8], BLOCKS, 8)
    decode = StepBatch.build([last_step(setup, pool, "a", IDS, BLOCKS)], 4, "cpu")
    chunk = StepBatch.build([RowPlan(IDS, 0, len(IDS), False, True, BLOCKS)], 4, "cpu")
    expected, written = setup.model.forward(chunk, pool), setup.model.kv_rows_written
    graphs, compute = DecodeGraphs(setup.model, pool), setup.model.compute
    graphs.forward(decode)
    assert device.log[-1] == "replay"

    def compute_without_graphs(step: StepBatch, kv: object) -> torch.Tensor:
        if "empty the cache" not in device.log:
            raise torch.OutOfMemoryError("no room")
        return compute(step, kv)

    monkeypatch.setattr(setup.model, "compute", compute_without_graphs)
    assert torch.equal(graphs.forward(chunk), expected)
    assert setup.model.kv_rows_written == written + decode.num_writes + chunk.num_writes
    assert [record.message for record in caplog.records] == [
        "no GPU memory for a step beside the recorded decode steps: steps of their shapes run slower from now on; a "
        "smaller [cache] num_blocks leaves more"
    ]
    graphs.forward(decode)
    assert device.log[-1] == "empty the cache", "the shape is not recorded again"


def test_a_step_that_has_no_memory_without_graphs_either_fails(setup, monkeypatch):
    device, pool = Device(monkeypatch), new_pool(setup, 4)
    chunk = StepBatch.build([RowPlan(IDS, 0, len(IDS), False, True, BLOCKS)], 4, "cpu")
    monkeypatch.setattr(setup.model, "compute", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no room")))
    with pytest.raises(torch.OutOfMemoryError):
        DecodeGraphs(setup.model, pool).forward(chunk)
    assert not device.log
