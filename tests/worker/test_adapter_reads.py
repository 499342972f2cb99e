"""What a file system, or memory, may do to the reading of an adapter: it costs that adapter alone."""

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from waiting import eventually

from icarus.adapters.metadata import read_metadata
from icarus.adapters.peft_config import read_config
from icarus.errors import DeadlineError, InvalidInputError, OverloadedError
from icarus.worker.adapter_reads import AdapterReads


class Disk:
    """Folders in `silent` do not answer until `answer` is set."""

    def __init__(self, *silent: str):
        self._silent = silent
        self.answer = threading.Event()
        self.num_reading = self.most_reading = 0

    def read(self, folder: Path, name: str, mode: object) -> str:
        self.num_reading += 1
        self.most_reading = max(self.most_reading, self.num_reading)
        try:
            assert folder.name not in self._silent or self.answer.wait(30)
            return f"weights of {name}"
        finally:
            self.num_reading -= 1

    def reads(self, limit_seconds: float = 30.0, place_seconds: float = 30.0) -> AdapterReads:
        read: Any = self.read
        return AdapterReads(lambda path, name: Path(path), read, limit_seconds, place_seconds)


async def test_folders_that_do_not_answer_cost_no_other_a_place():
    disk = Disk("x", "y")
    reads = disk.reads(limit_seconds=0.2)
    hanging = [asyncio.create_task(reads.read(name, name, None)) for name in "xy"]
    await eventually(lambda: disk.num_reading == 2)
    assert await asyncio.wait_for(reads.read("a", "a", None), 10) == (Path("a"), "weights of a")
    for task in hanging:
        with pytest.raises(DeadlineError, match=r"adapter '[xy]': [xy] was not read within 0.2 s"):
            await task
    with pytest.raises(DeadlineError):
        await reads.read("x", "again", None)
    assert disk.num_reading == 2, "no second thread for a folder that hangs"
    disk.answer.set()
    await eventually(lambda: disk.num_reading == 0)
    assert (await reads.read("x", "again", None))[1] == "weights of again"


async def test_a_slow_folder_is_waited_for_and_keeps_no_other_waiting():
    disk = Disk("x", "y", "z")
    reads = disk.reads(place_seconds=0.1)
    slow = [asyncio.create_task(reads.read(name, name, None)) for name in "xyz"]
    assert (await asyncio.wait_for(reads.read("a", "a", None), 10))[1] == "weights of a"
    with pytest.raises(DeadlineError, match=r"x was not read within 0\.1 s"):
        await reads.read("x", "again", None)
    assert not any(task.done() for task in slow)
    disk.answer.set()
    assert [weights for _, weights in await asyncio.gather(*slow)] == [f"weights of {name}" for name in "xyz"]


async def test_a_read_that_nobody_waits_for_keeps_its_place():
    disk = Disk("x")
    reads = disk.reads()
    for _ in range(5):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reads.read("x", "x", None), 0.01)
    disk.answer.set()
    assert (await reads.read("a", "a", None))[1] == "weights of a"
    assert disk.most_reading == 2


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory.\nof much")])
async def test_where_memory_is_short_another_worker_may_have_some(error):
    def read(*args):
        raise error

    reads = AdapterReads(lambda path, name: Path(path), read)
    with pytest.raises(OverloadedError, match=r"'a': no memory .*max_resident_adapters"):
        await reads.read("a", "a", None)


@pytest.mark.parametrize("file", ["icarus.json", "adapter_config.json"])
async def test_a_pipe_is_no_file_of_settings(file, tmp_path):
    os.mkfifo(tmp_path / file)
    with pytest.raises(InvalidInputError, match="no regular file"):
        read_metadata(tmp_path) if file == "icarus.json" else read_config(tmp_path, "a", 8)


HANG = "time.sleep(600)"
COMPUTE = "[torch.ones(64, 64) @ torch.ones(64, 64) for _ in iter(lambda: time.monotonic() < started + 1, False)]"


@pytest.mark.parametrize("work", [HANG, COMPUTE])
def test_a_process_ends_well_whatever_a_passing_thread_does(work):
    """It does not wait for ever, and none comes back from torch into an interpreter that is gone."""
    script = f"""
import asyncio, time, torch
from icarus.worker.compute import run_in_passing_thread

started = time.monotonic()

async def main():
    await asyncio.wait({{asyncio.ensure_future(run_in_passing_thread(lambda: {work}))}}, timeout=0.1)

asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
