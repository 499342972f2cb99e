"""A turn that is cancelled, or whose deadline passes, in each phase. A hook holds it there, and the hold stays on until
everything is seen to be free: no step, and no read that settles, may be needed for it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
import pytest
from services.system import BLOCK_SIZE, System
from services.test_chain import ids

from icarus.client import Client
from icarus.config import TransferSection, WorkerSection
from icarus.errors import DeadlineError
from icarus.worker.v1 import debug_service_pb2 as debug_pb
from icarus.worker.v1 import debug_service_pb2_grpc as debug_grpc

PATIENCE_SECONDS = 30.0
DEADLINE_SECONDS = 10.0
"""Long enough for a turn to come to the phase that is held."""
LEASE_SECONDS = 600.0
"""No test may pass because a lease ran out."""
SHORT, LONG = 40, 120
"""Prompts that the decode worker computes itself, and that go to the prefill worker."""


@pytest.fixture(scope="module")
def hooked(make_system) -> Iterator[System]:
    transfer = TransferSection(lease_seconds=LEASE_SECONDS, read_timeout_seconds=60.0)
    with make_system(max_batch_tokens=16, worker=WorkerSection(test_hooks=True), transfer=transfer) as system:
        yield system


@dataclass(frozen=True)
class Hold:
    """A phase of a worker that is held."""

    debug: debug_grpc.DebugServiceStub
    phase: int

    def wait_reached(self) -> None:
        self.debug.AwaitHeld(debug_pb.AwaitHeldRequest(phase=self.phase), timeout=PATIENCE_SECONDS)


@contextmanager
def hold(system: System, worker_id: str, name: str) -> Iterator[Hold]:
    phase = debug_pb.TurnPhase.Value(f"TURN_PHASE_{name.upper()}")
    with grpc.insecure_channel(system.workers()[worker_id].address) as channel:
        debug = debug_grpc.DebugServiceStub(channel)
        debug.HoldPhase(debug_pb.HoldPhaseRequest(phase=phase))
        try:
            yield Hold(debug, phase)
        finally:
            debug.ReleasePhase(debug_pb.ReleasePhaseRequest(phase=phase))


@contextmanager
def decoding_held(system: System) -> Iterator[None]:
    """Turns that have output stand still."""
    with hold(system, "decode-0", "decoding"), hold(system, "decode-1", "decoding"):
        yield


def states(system: System) -> dict[str, debug_pb.CheckIntegrityResponse]:
    return {worker_id: system.integrity(worker_id) for worker_id in ("prefill-0", "decode-0", "decode-1")}


def wait_for(holds: Callable[[], bool], seen: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, seen()
        time.sleep(0.02)


def is_free(state: debug_pb.CheckIntegrityResponse) -> bool:
    return not (state.used_blocks or state.leased_blocks or state.running_requests or state.waiting_requests)


def wait_until_free(system: System) -> dict[str, debug_pb.CheckIntegrityResponse]:
    wait_for(lambda: all(map(is_free, states(system).values())), lambda: states(system))
    return states(system)


CASES = {
    ("decode-0", "queued"): SHORT,
    ("decode-0", "reserved"): LONG,
    ("decode-0", "transferring"): LONG,
    ("decode-0", "prefilling"): SHORT,
    ("decode-0", "decoding"): SHORT,
    ("decode-0", "streaming"): SHORT,
    ("prefill-0", "queued"): LONG,
    ("prefill-0", "reserved"): LONG,
    ("prefill-0", "transferring"): LONG,
    ("prefill-0", "prefilling"): LONG,
    ("prefill-0", "streaming"): LONG,
}


def check_reached(state: debug_pb.CheckIntegrityResponse, phase: str) -> None:
    """The worker's own counts agree with what the hook says."""
    assert state.quarantined_blocks == 0
    if phase == "queued":
        assert (state.waiting_requests, state.running_requests, state.used_blocks) == (1, 0, 0)
    elif phase != "streaming":  # there the engine goes on and may have finished the turn
        assert (state.waiting_requests, state.running_requests) == (0, 1)
        assert state.used_blocks > 0


ENDINGS = [(*case, "cancelled") for case in CASES]
"""From the gateway on, a deadline takes the same way as a cancellation."""
ENDINGS += [("decode-0", "decoding", "deadline"), ("prefill-0", "transferring", "deadline")]


@pytest.mark.parametrize(("worker_id", "phase", "ending"), ENDINGS)
def test_a_turn_that_ends_in_a_phase_frees_everything(hooked, worker_id, phase, ending):
    seed = 10_000 + 100 * list(CASES).index((worker_id, phase)) + (50 if ending == "deadline" else 0)
    cached = ids(SHORT, seed)
    prompt = cached + ids(CASES[worker_id, phase], seed + 1)
    with Client(hooked.address) as client:
        if worker_id == "prefill-0":  # so that the prefill worker has something to read
            hooked.cache(client, "s1", cached)
        else:
            prompt = prompt[SHORT:]
        hooked.wait_until_idle()
        before = states(hooked)
        with hold(hooked, worker_id, phase) as held:
            timeout = DEADLINE_SECONDS if ending == "deadline" else None
            stream = client.generate("s0", token_ids=prompt, max_tokens=200, ignore_eos=True, timeout=timeout)
            held.wait_reached()
            if (worker_id, phase) == ("decode-0", "reserved"):  # its prefill is staged, and nobody has taken it over
                wait_for(lambda: hooked.integrity("prefill-0").leased_blocks > 0, lambda: states(hooked))
            reached = hooked.integrity(worker_id)
            check_reached(reached, phase)
            if ending == "cancelled":
                stream.cancel()
            else:
                with pytest.raises(DeadlineError):
                    stream.result()
            freed = wait_until_free(hooked)
            if phase in ("prefilling", "decoding", "transferring"):
                assert freed[worker_id].kv_written_tokens == reached.kv_written_tokens, "no step was needed"
            quarantined = {name: state.quarantined_blocks for name, state in freed.items()}
            if phase == "transferring":
                num_read = (SHORT if worker_id == "prefill-0" else LONG) // BLOCK_SIZE
                assert quarantined == dict.fromkeys(quarantined, 0) | {worker_id: num_read}
            else:
                assert not any(quarantined.values())
        wait_for(lambda: hooked.integrity(worker_id).quarantined_blocks == 0, lambda: states(hooked))
        after = wait_until_free(hooked)
        for name, state in after.items():
            assert state.leases_expired == before[name].leases_expired == 0
            assert state.free_blocks + state.cached_blocks == state.total_blocks
        result = client.generate("s0", token_ids=prompt, max_tokens=3).result()
        hooked.check_greedy("s0", prompt, result)


def test_a_turn_that_gave_a_read_up_and_is_then_cancelled_keeps_the_books(make_system):
    transfer = TransferSection(lease_seconds=LEASE_SECONDS, read_timeout_seconds=0.5)
    with (
        make_system(worker=WorkerSection(test_hooks=True), transfer=transfer) as system,
        Client(system.address) as client,
    ):
        prompt, num_read = ids(LONG, 30_000), LONG // BLOCK_SIZE
        with hold(system, "decode-0", "transferring"):
            stream = client.generate("s0", token_ids=prompt, max_tokens=800, ignore_eos=True)
            next(stream)  # the read timed out, and the turn was computed
            assert system.integrity("decode-0").quarantined_blocks == num_read
            stream.cancel()
            assert wait_until_free(system)["decode-0"].quarantined_blocks == num_read
        wait_for(lambda: system.integrity("decode-0").quarantined_blocks == 0, lambda: states(system))
        result = client.generate("s0", token_ids=prompt, max_tokens=3).result()
        system.check_greedy("s0", prompt, result)
        wait_until_free(system)


def test_a_held_turn_goes_on_when_it_is_let_go(hooked):
    for seed, (worker_id, phase) in enumerate(CASES):
        prompt = ids(LONG if worker_id == "prefill-0" else CASES[worker_id, phase], 20_000 + seed)
        if worker_id == "prefill-0" and phase in ("reserved", "transferring"):
            continue  # needs a cached prefix; see above
        with Client(hooked.address) as client:
            with hold(hooked, worker_id, phase) as held:
                stream = client.generate("s0", token_ids=prompt, max_tokens=3)
                held.wait_reached()
            hooked.check_greedy("s0", prompt, stream.result())
    wait_until_free(hooked)


def test_the_hooks_are_absent_unless_asked_for(make_system):
    with make_system(num_prefill=0) as system, grpc.insecure_channel(system.workers()["decode-0"].address) as channel:
        debug = debug_grpc.DebugServiceStub(channel)
        calls = [
            (debug.HoldPhase, debug_pb.HoldPhaseRequest),
            (debug.AwaitHeld, debug_pb.AwaitHeldRequest),
            (debug.ReleasePhase, debug_pb.ReleasePhaseRequest),
        ]
        for call, request in calls:
            with pytest.raises(grpc.RpcError) as caught:
                call(request(phase=debug_pb.TURN_PHASE_DECODING))
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert "[worker] test_hooks" in caught.value.details()


def test_a_phase_that_is_not_one_is_refused(hooked):
    with grpc.insecure_channel(hooked.workers()["decode-0"].address) as channel:
        debug = debug_grpc.DebugServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            debug.HoldPhase(debug_pb.HoldPhaseRequest(phase=99))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.RpcError) as caught:
            debug.AwaitHeld(debug_pb.AwaitHeldRequest(phase=debug_pb.TURN_PHASE_DECODING))
        assert "decoding is not held" in caught.value.details()
