"""What goes wrong in a cluster costs time, not answers."""

import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

import grpc
import pytest
from services.system import BLOCK_SIZE, System
from services.test_cancellation import decoding_held, hold
from services.test_chain import ids
from waiting import wait_until

from icarus.client import Client, Delta, TurnStream
from icarus.config import TransferSection, WorkerSection
from icarus.errors import DeadlineError
from icarus.worker.v1 import debug_service_pb2


def wait_until_busy(system: System) -> str:
    """The worker that has a turn."""
    busy: list[str] = []
    wait_until(
        lambda: busy or busy.extend(name for name, worker in system.workers().items() if worker.running_requests)
    )
    return busy[0]


def lose_its_worker(system: System, start: Callable[[], TurnStream]) -> tuple[TurnStream, Delta, str]:
    """Starts a turn and kills its worker in the middle of it: (its stream, the first delta, the worker)."""
    holds = ExitStack()
    holds.enter_context(decoding_held(system))
    stream = start()
    first = next(stream)
    busy = wait_until_busy(system)
    system.signal(busy, signal.SIGKILL)
    with suppress(grpc.RpcError):  # of the one that is gone
        holds.close()
    return stream, first, busy


def test_a_decode_worker_that_dies_mid_stream_is_survived(make_system):
    with make_system(worker=WorkerSection(test_hooks=True)) as system, Client(system.address) as client:
        prompt = ids(30, 1)
        stream, first, busy = lose_its_worker(
            system, lambda: client.generate("both", token_ids=prompt, max_tokens=200, ignore_eos=True)
        )
        result = stream.result()
        assert len(result.token_ids) == 200
        assert result.token_ids[: len(first.token_ids)] == first.token_ids
        assert result.route.decode_worker != busy
        system.check_greedy("both", prompt, result)


def test_a_dead_prefill_worker_costs_only_time(make_system):
    with make_system() as system, Client(system.address) as client:
        first = client.generate("both", token_ids=ids(120, 1), max_tokens=3).result()
        assert first.route.prefill_worker == "prefill-0"
        system.signal("prefill-0", signal.SIGKILL)
        prompt = ids(120, 2)
        second = client.generate("both", token_ids=prompt, max_tokens=3).result()
        assert second.route.prefill_worker is None
        system.check_greedy("both", prompt, second)


def test_a_prefill_worker_that_drains_lends_what_it_has_until_it_was_read(make_system):
    with make_system(worker=WorkerSection(test_hooks=True)) as system, Client(system.address) as client:
        prompt = ids(120, 5)
        with hold(system, "decode-1", "transferring") as held:
            stream = client.generate("s1", token_ids=prompt, max_tokens=3, timeout=60)
            held.wait_reached()
            system.signal("prefill-0", signal.SIGTERM)
            wait_until(lambda: "msg=draining" in system.log("prefill-0"))
        result = stream.result()
        assert (result.route.prefill_worker, result.usage.transfer_reads) == ("prefill-0", 1)
        assert result.usage.kv_written_tokens < len(prompt) + 3 + BLOCK_SIZE, "nothing was computed twice"
        system.check_greedy("s1", prompt, result)
        wait_until(lambda: "prefill-0" not in system.workers())


def test_decode_alone_serves(make_system):
    with make_system(num_prefill=0) as system, Client(system.address) as client:
        prompt = ids(150, 3)
        result = client.generate("s1", token_ids=prompt, max_tokens=4).result()
        assert result.usage.computed_tokens == 150
        system.check_greedy("s1", prompt, result)
        system.wait_until_idle()


def test_a_stopped_source_is_given_up_and_its_blocks_are_quarantined(make_system):
    """A hook keeps the read under way until the source is stopped, which then cannot end the lease either."""
    transfer = TransferSection(read_timeout_seconds=1.0)
    with (
        make_system(worker=WorkerSection(test_hooks=True), transfer=transfer) as system,
        Client(system.address) as client,
    ):
        prompt = ids(60, 4)
        system.cache(client, "s0", prompt)
        with hold(system, "decode-1", "transferring") as held:
            stream = client.generate("s1", token_ids=prompt, max_tokens=2, timeout=60)
            held.wait_reached()
            system.signal("decode-0", signal.SIGSTOP)
            started = time.monotonic()
            try:
                result = stream.result()
                assert time.monotonic() - started < 30
                state = held.debug.CheckIntegrity(debug_service_pb2.CheckIntegrityRequest(), timeout=20)
            finally:
                system.signal("decode-0", signal.SIGCONT)
            assert state.quarantined_blocks == len(prompt) // BLOCK_SIZE
            assert (result.usage.remote_tokens, result.usage.computed_tokens) == (0, len(prompt))
            system.check_greedy("s1", prompt, result)
        system.wait_until_idle()
        wait_until(lambda: system.integrity("decode-1").quarantined_blocks == 0)


def test_cancelling_a_stream_frees_its_blocks(system, client):
    with decoding_held(system):
        stream = client.generate("s0", token_ids=ids(40, 6), max_tokens=900, ignore_eos=True)
        next(stream)
        assert system.integrity("decode-0").used_blocks > 0
        stream.cancel()
        system.wait_until_idle()


def test_cancelling_before_the_first_token_frees_everything(system, client):
    for seed in range(4):
        stream = client.generate("both", token_ids=ids(500, 10 + seed), max_tokens=100, ignore_eos=True)
        time.sleep(0.02 * seed)
        stream.cancel()
    system.wait_until_idle()
    client.generate("both", token_ids=ids(20, 20), max_tokens=2).result()


def test_a_deadline_frees_everything(system, client):
    with decoding_held(system):
        with pytest.raises(DeadlineError):
            client.generate("s1", token_ids=ids(40, 30), max_tokens=900, ignore_eos=True, timeout=2).result()
        system.wait_until_idle()
