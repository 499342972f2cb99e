"""Reading adapters for turns: once for all who ask, off the event loop, and never other weights than were loaded."""

import asyncio
import gc
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from waiting import eventually

from icarus.adapters.generate import SHARED_TARGETS, write_random_adapter
from icarus.adapters.lora import LoraWeights
from icarus.adapters.peft_folder import load_peft_folder
from icarus.adapters.registry import AdapterRegistry
from icarus.adapters.root import resolve_folder
from icarus.errors import FailedPreconditionError, NotFoundError, OverloadedError
from icarus.types import AdapterMode
from icarus.worker.adapter_host import AdapterHost
from icarus.worker.adapter_reads import READ_SECONDS, AdapterReads

BASE = "ab" * 32


@dataclass(frozen=True)
class Shape:
    linear_shapes: Mapping[str, tuple[int, int]]
    num_layers: int = 1


SHAPE = Shape(dict.fromkeys(SHARED_TARGETS, (8, 8)))


class Disk:
    """Adapter folders, read as a worker reads them; a test may hold the reads, and sees which thread made them."""

    def __init__(self, folder: Path):
        self.root = folder
        self.reads: list[str] = []
        self.threads: set[int] = set()
        self.open = threading.Event()
        self.open.set()

    def write(self, name: str, seed: int) -> Path:
        return write_random_adapter(self.root / name, SHAPE, BASE, rank=2, seed=seed)

    def read(self, folder: Path, name: str, mode: AdapterMode | None) -> LoraWeights:
        self.reads.append(name)
        self.threads.add(threading.get_ident())
        assert self.open.wait(30)
        shapes, dtype = SHAPE.linear_shapes, torch.float32
        return load_peft_folder(folder, name, mode, shapes, SHAPE.num_layers, BASE, dtype, device="cpu")

    def host(self, max_resident: int, max_waiting: int = 8, limit_seconds: float = READ_SECONDS) -> AdapterHost:
        root = str(self.root)
        reads = AdapterReads(lambda path, name: resolve_folder(path, name, root), self.read, limit_seconds)
        return AdapterHost(AdapterRegistry(max_resident), reads, max_waiting)


@pytest.fixture
def disk(tmp_path) -> Disk:
    return Disk(tmp_path)


async def two_of_which_one_is_evicted(disk: Disk) -> AdapterHost:
    """`a` is remembered, `b` has the only slot."""
    host = disk.host(max_resident=1)
    for seed, name in enumerate("ab"):
        disk.write(name, seed)
        await host.load(name, name, None)
    gc.collect()
    disk.reads.clear()
    assert [info.resident for info in host.list()] == [False, True]
    return host


async def test_an_evicted_adapter_is_read_again_once_for_all_who_ask(disk):
    host = await two_of_which_one_is_evicted(disk)
    disk.open.clear()
    asking = [asyncio.create_task(host.weights("a")) for _ in range(5)]
    await asyncio.sleep(0.01)  # the loop goes on while the disk does not
    assert not any(task.done() for task in asking)
    disk.open.set()
    found = await asyncio.gather(*asking)
    assert len(set(map(id, found))) == 1 and disk.reads == ["a"]
    assert threading.get_ident() not in disk.threads
    assert [info.resident for info in host.list()] == [True, False]
    assert await host.weights("a") is found[0] and disk.reads == ["a"]


async def test_a_turn_that_is_cancelled_leaves_the_read_to_the_others(disk):
    host = await two_of_which_one_is_evicted(disk)
    disk.open.clear()
    first, second = (asyncio.create_task(host.weights("a")) for _ in range(2))
    await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    disk.open.set()
    assert (await second).name == "a" and disk.reads == ["a"]


async def test_turns_that_wait_for_reads_are_bounded(disk):
    host = disk.host(max_resident=1, max_waiting=2)
    for seed, name in enumerate("ab"):
        await host.load(name, disk.write(name, seed), None)
    gc.collect()
    disk.open.clear()
    waiting = [asyncio.create_task(host.weights("a")) for _ in range(2)]
    await asyncio.sleep(0.01)
    with pytest.raises(OverloadedError, match="2 turns wait for adapters"):
        await host.weights("a")
    disk.open.set()
    await asyncio.gather(*waiting)
    assert (await host.weights("b")).name == "b"


async def test_a_folder_that_changed_meanwhile_is_not_served(disk):
    host = await two_of_which_one_is_evicted(disk)
    before = host.list()[0].digest
    disk.write("a", seed=99)
    with pytest.raises(FailedPreconditionError, match=rf"'a' was evicted, and .* holds other weights .*{before}"):
        await host.weights("a")
    shutil.rmtree(disk.root / "a")
    with pytest.raises(FailedPreconditionError, match=r"'a' was evicted and cannot be read again: .* is not a folder"):
        await host.weights("a")
    assert (await host.weights("b")).name == "b"
    disk.write("a", seed=0)
    assert (await host.weights("a")).digest == before


async def test_a_folder_that_was_moved_out_of_the_root_is_not_read(disk, tmp_path_factory):
    host = await two_of_which_one_is_evicted(disk)
    shutil.move(disk.root / "a", outside := tmp_path_factory.mktemp("outside") / "a")
    (disk.root / "a").symlink_to(outside)
    with pytest.raises(FailedPreconditionError, match="outside of this worker's adapter root"):
        await host.weights("a")
    assert disk.reads == []


async def test_a_file_that_is_written_over_does_not_change_the_weights_in_use(disk):
    host = disk.host(max_resident=0)
    await host.load("a", disk.write("a", seed=1), None)
    held = await host.weights("a")
    kept = {module: tuple(t.clone() for t in pair) for module, pair in held.modules.items()}
    changed = disk.write("b", seed=2) / "adapter_model.safetensors"
    with (disk.root / "a" / "adapter_model.safetensors").open("r+b") as file:
        file.write(changed.read_bytes())
    for module, pair in held.modules.items():
        assert all(torch.equal(now, then) for now, then in zip(pair, kept[module], strict=True))


async def test_a_name_that_was_replaced_is_not_found_by_its_old_digest(disk):
    host = disk.host(max_resident=1)
    old = await host.load("a", disk.write("a", seed=1), None)
    new = await host.load("a", disk.write("a2", seed=2), None, replace=True)
    assert (await host.weights("a", new.digest)).digest == (await host.weights("a")).digest == new.digest
    with pytest.raises(NotFoundError, match=rf"digest {new.digest} here.*digest {old.digest}: it was replaced"):
        await host.weights("a", old.digest)


async def test_a_name_whose_mode_was_changed_is_not_found_by_its_old_mode(disk):
    host = await two_of_which_one_is_evicted(disk)
    shared = host.list()[0]
    disk.open.clear()
    turn = asyncio.create_task(host.weights("a", shared.digest, "shared"))
    await eventually(lambda: disk.reads)
    loading = asyncio.create_task(host.load("a", "a", AdapterMode.PRIVATE, replace=True))
    await eventually(lambda: len(disk.reads) == 2)
    disk.open.set()
    private = await loading
    assert (private.digest, private.mode) == (shared.digest, AdapterMode.PRIVATE)
    assert (await turn).mode is AdapterMode.SHARED
    assert (await host.weights("a", shared.digest, "private")).mode is AdapterMode.PRIVATE
    with pytest.raises(NotFoundError, match="'a' is private here, no longer shared"):
        await host.weights("a", shared.digest, "shared")


async def test_a_replacement_in_mid_read_gives_the_turn_what_it_began_with(disk):
    host = await two_of_which_one_is_evicted(disk)
    old = host.list()[0].digest
    disk.open.clear()
    turn = asyncio.create_task(host.weights("a", old))
    await asyncio.sleep(0.01)
    loading = asyncio.create_task(host.load("a", disk.write("a2", seed=7), None, replace=True))
    await asyncio.sleep(0.01)
    disk.open.set()
    new = await loading
    assert (await turn).digest == old != new.digest
    assert (await host.weights("a")).digest == new.digest


async def test_pinning_reads_what_was_evicted_and_keeps_it(disk):
    host = await two_of_which_one_is_evicted(disk)
    await host.pin("a", True)
    assert [(info.resident, info.pinned) for info in host.list()] == [(True, True), (False, False)]
    for call in (host.weights("b"), host.pin("b", True), host.load("c", disk.write("c", 3), None)):
        with pytest.raises(OverloadedError, match="all 1 slots are pinned by a"):
            await call
    assert disk.reads == ["a"], "nothing is read that has no room"
    await host.pin("a", False)
    assert (await host.weights("b")).name == "b"
    assert [(info.resident, info.pinned) for info in host.list()] == [(False, False), (True, False)]
    with pytest.raises(NotFoundError, match="'x'"):
        await host.pin("x", False)
