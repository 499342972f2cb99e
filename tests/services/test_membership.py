"""Who comes, goes and comes again: processes started one by one, as containers are, in any order."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ports import free_address
from services.system import BLOCK_SIZE
from services.test_chain import ids
from services.test_metrics import scrape
from waiting import wait_until

from icarus.client import Client
from icarus.errors import IcarusError

BROKEN = """
import sys
from icarus.cli.main import main
from icarus.engine.scheduler import Scheduler
Scheduler.schedule = lambda self: 1 / 0
sys.exit(main(sys.argv[1:]))
"""
HUNG = """
import sys, time
from icarus.cli.main import main
from icarus.engine.scheduler import Scheduler
Scheduler.schedule = lambda self: time.sleep(100_000)
sys.exit(main(sys.argv[1:]))
"""
INDEXED = "icarus_index_blocks"


def num_indexed(metrics: str) -> float:
    """Blocks that a gateway knows of."""
    return next(sample.value for family in scrape(metrics) for sample in family.samples if sample.name == INDEXED)


class Members:
    """Processes by name, all of one deployment with two gateways."""

    def __init__(self, base: Path, specialists, folder: Path):
        self.gateways = (free_address(), free_address())
        self._base, self._specialists, self._folder = base, specialists, folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start_gateway(self, address: str, *flags: str) -> None:
        own = ("--gateway-address", address, "--gateway-heartbeat-seconds", "1", *flags)
        self._start(f"gateway-{address}", "gateway", *own)

    def start_decode(self, worker_id: str, *flags: str, adapters: tuple[str, ...] = (), program=("-m",)) -> None:
        entries = [f"--worker-adapters={name}={self._specialists.folder(name)}" for name in adapters]
        gateways = [f"--worker-gateways={address}" for address in self.gateways]
        shape = ("--model-dtype=float32", f"--cache-block-size={BLOCK_SIZE}", "--engine-num-threads=1")
        own = (f"--worker-id={worker_id}", *gateways, *entries, *shape, "--cache-num-blocks=256", *flags)
        self._start(worker_id, "decode", *own, program=program)

    def _start(self, name: str, role: str, *flags: str, program: tuple[str, ...] = ("-m",)) -> None:
        model = (f"--model-path={self._base}", "--model-name=tiny")
        module = ("icarus.cli.main",) if program == ("-m",) else ()
        command = [sys.executable, *program, *module, "serve", role, "--stop-with-stdin", *model, *flags]
        with (self._folder / name).open("ab") as log:
            self.processes[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=log)

    def log(self, name: str) -> str:
        return (self._folder / name).read_text()

    def addresses(self, gateway: str) -> dict[str, str]:
        """Workers that this gateway would use: id -> address."""
        try:
            with Client(gateway) as client:
                return {worker.worker_id: worker.address for worker in client.cluster(timeout=10).workers}
        except IcarusError:
            return {}

    def wait_for(self, gateway: str, *worker_ids: str) -> dict[str, str]:
        deadline = time.monotonic() + 90
        while not {*worker_ids} <= (found := self.addresses(gateway)).keys():
            dead = [name for name, process in self.processes.items() if process.poll() is not None]
            assert time.monotonic() < deadline and not dead, (found, dead)
            time.sleep(0.1)
        return found

    def stop(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.wait(60)


@pytest.fixture(scope="module")
def members(base, specialists, tmp_path_factory):
    members = Members(base, specialists, tmp_path_factory.mktemp("members"))
    try:
        members.start_decode("decode-0", adapters=("s0",))
        members.start_decode("decode-1", adapters=("s1",))
        yield members
    finally:
        members.stop()


def test_workers_that_were_there_first_register_with_each_gateway(members, specialists):
    """The second gateway comes later, learns what is cached where, and serves beside the first."""
    first, second = members.gateways
    wait_until(lambda: "msg=serving" in members.log("decode-0"), 90)
    prompt = ids(60, 1)
    members.start_gateway(first)
    members.wait_for(first, "decode-0", "decode-1")
    with Client(first) as client:
        mine = client.generate("s1", token_ids=prompt, max_tokens=4).result()
    specialists.check_tokens("s1", [*prompt, *mine.token_ids], len(prompt))
    metrics = free_address()
    members.start_gateway(second, "--metrics-address", metrics)
    members.wait_for(second, "decode-0", "decode-1")
    wait_until(lambda: num_indexed(metrics) >= len(prompt) // BLOCK_SIZE)
    with Client(second) as client:
        theirs = client.generate("tiny", token_ids=prompt, max_tokens=4).result()
        assert theirs.route.decode_worker == mine.route.decode_worker == "decode-1"
        assert theirs.usage.local_tokens == len(prompt) // BLOCK_SIZE * BLOCK_SIZE
    with Client(first) as client:
        assert client.generate("s0", token_ids=prompt, max_tokens=2).result().route.decode_worker == "decode-0"


def test_a_restarted_worker_takes_its_place_again(members, specialists):
    first, second = members.gateways
    before = members.wait_for(first, "decode-0", "decode-1")["decode-1"]
    members.processes["decode-1"].send_signal(signal.SIGKILL)
    members.processes["decode-1"].wait(10)
    members.start_decode("decode-1", adapters=("s1",))
    for gateway in (first, second):
        deadline = time.monotonic() + 60
        while members.addresses(gateway).get("decode-1", before) == before:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        prompt = ids(40, 2)
        with Client(gateway) as client:
            result = client.generate("s1", token_ids=prompt, max_tokens=4).result()
        assert result.route.decode_worker == "decode-1"
        specialists.check_tokens("s1", [*prompt, *result.token_ids], len(prompt))


def test_a_worker_that_is_stopped_takes_leave(members):
    """Its place is empty before three heartbeats are missed, so nobody takes it for dead."""
    first, second = members.gateways
    members.wait_for(first, "decode-0", "decode-1")
    members.wait_for(second, "decode-0", "decode-1")
    members.processes["decode-1"].terminate()
    assert members.processes["decode-1"].wait(30) == 0
    for gateway in (first, second):
        assert members.addresses(gateway).keys() == {"decode-0"}
    members.start_decode("decode-1", adapters=("s1",))
    members.wait_for(first, "decode-0", "decode-1")


def test_a_worker_whose_engine_hangs_ends_although_its_thread_does_not(members, specialists):
    first, _ = members.gateways
    flags = ("--cache-num-blocks=4096", "--engine-max-step-seconds=2", "--worker-drain-seconds=2")
    members.start_decode("hung", *flags, program=("-c", HUNG))
    members.wait_for(first, "hung")
    prompt = ids(50, 4)
    with Client(first) as client:
        result = client.generate("tiny", token_ids=prompt, max_tokens=4).result()
    specialists.check_tokens("", [*prompt, *result.token_ids], len(prompt))
    assert members.processes.pop("hung").wait(60) == 1
    log = members.log("hung")
    assert "a thread of this worker hangs" in log and "the engine thread has not come round for" in log
    assert "never retrieved" not in log


def test_a_worker_whose_engine_fails_ends_and_its_turn_goes_on_elsewhere(members, specialists):
    """Its pool is the largest, so the turn goes to it first."""
    first, _ = members.gateways
    members.start_decode("broken", "--cache-num-blocks=4096", program=("-c", BROKEN))
    members.wait_for(first, "broken")
    prompt = ids(50, 3)
    with Client(first) as client:
        result = client.generate("tiny", token_ids=prompt, max_tokens=4).result()
    specialists.check_tokens("", [*prompt, *result.token_ids], len(prompt))
    assert members.processes.pop("broken").wait(30) == 1
    log = members.log("broken")
    assert log.splitlines()[-1] == ("icarus: error: the engine thread ended: ZeroDivisionError: division by zero"), log
    assert "traceback=" in log and "never retrieved" not in log
    assert result.route.decode_worker in ("decode-0", "decode-1")
