"""Many callers for many minutes, while processes are killed, stopped and ended: what no single test would find.

    python tests/services/soak.py --seconds 300 --callers 8
    python tests/services/soak.py --seconds 300 --no-faults

A tiny model behind a gateway with a session file, a prefill worker and two decode workers with small pools. Callers
hold conversations in sessions and without, with every kind of sampling, and cancel turns, miss deadlines, fork and
delete; an operator replaces and unloads an adapter. Of each finished turn the deltas, the usage and the history after
it are checked, of some the tokens, by the oracle. In the end nothing may be in use. Prints what it counted, and each
problem; the exit code is 1 if there was one.
"""

import argparse
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

sys.path.insert(0, str(Path(__file__).parents[1]))

from engine.harness import Specialists
from services.system import BLOCK_SIZE
from services.test_chain import ids
from services.test_membership import Members
from tiny import PRIVATE_TARGETS, SHARED_TARGETS, tiny_adapter, tiny_llama

from icarus.adapters.metadata import AdapterMetadata, write_metadata
from icarus.client import Client, RetryPolicy, Session, TurnStream
from icarus.errors import ConflictError, DeadlineError, IcarusError, NotFoundError, OverloadedError, UnavailableError
from icarus.model.digest import base_digest
from icarus.types import AdapterMode
from icarus.worker.v1 import debug_service_pb2, debug_service_pb2_grpc

SHARED = ("s0", "s1", "s2", "s3")
SWAPPED, SWAPPED_BETWEEN = "swap", ("s0", "s1")
MODELS = (*SHARED, "own", "tiny", SWAPPED)
WORKERS = ("prefill-0", "decode-0", "decode-1")
PASSING = (DeadlineError, OverloadedError, UnavailableError, ConflictError)
"""What may happen to a call while processes come and go."""
MAX_HISTORY = 800
CHECKED_BY_ORACLE = 0.04
PATIENCE_SECONDS = 60.0


@dataclass
class Findings:
    """What all threads saw."""

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def problem(self, what: str, **facts: Any) -> None:
        self.problems.append(f"{what}: {facts}")
        print("PROBLEM", self.problems[-1], flush=True)


class Deployment:
    """The processes, by name, and the names' adapters."""

    def __init__(self, folder: Path):
        self.base = tiny_llama(folder / "tiny", heads=6, kv_heads=2, context=1024)
        digest = base_digest(self.base)
        modes = dict.fromkeys(SHARED, AdapterMode.SHARED) | {"own": AdapterMode.PRIVATE}
        adapters = {}
        for seed, (name, mode) in enumerate(modes.items()):
            targets = PRIVATE_TARGETS if mode is AdapterMode.PRIVATE else SHARED_TARGETS
            adapters[name] = (tiny_adapter(folder / name, self.base, rank=3 + seed, seed=seed, targets=targets), mode)
            if mode is AdapterMode.SHARED:
                write_metadata(adapters[name][0], AdapterMetadata(mode, digest))
        self.specialists = Specialists(self.base, adapters)
        self._oracle = threading.Lock()
        self._sessions = folder / "sessions.db"
        self.members = Members(self.base, self.specialists, folder)
        self.gateway = self.members.gateways[0]
        for name in ("gateway", *WORKERS):
            self.start(name)
        self.wait_until_complete()

    def wait_until_complete(self) -> None:
        """Until every worker is there and has what is loaded at run time, which a restarted one has not."""
        self.members.wait_for(self.gateway, *WORKERS)
        with Client(self.gateway, timeout=PATIENCE_SECONDS) as client:
            client.load_adapter("own", self.specialists.folder("own"), AdapterMode.PRIVATE)

    def start(self, name: str) -> None:
        small = ("--cache-num-blocks=400", "--engine-max-batch-tokens=128", "--transfer-lease-seconds=5")
        if name == "gateway":
            grace = ("--gateway-resume-grace-seconds=5", "--gateway-prefill-threshold-tokens=64")
            self.members.start_gateway(self.gateway, f"--gateway-session-file={self._sessions}", *grace)
        elif name.startswith("decode"):
            self.members.start_decode(name, *small, adapters=SHARED)
        else:
            shape = ("--model-dtype=float32", f"--cache-block-size={BLOCK_SIZE}", "--engine-num-threads=1")
            own = (f"--worker-id={name}", f"--worker-gateways={self.gateway}")
            self.members._start(name, "prefill", *own, *shape, *small)

    def process(self, name: str) -> Any:
        return self.members.processes[f"gateway-{self.gateway}" if name == "gateway" else name]

    def check_tokens(self, model: str, prompt: list[int], output: list[int]) -> None:
        """Raises AssertionError unless each token is the model's own choice."""
        choices = SWAPPED_BETWEEN if model == SWAPPED else ("" if model == "tiny" else model,)
        with self._oracle:
            for index, name in enumerate(choices):
                try:
                    return self.specialists.check_tokens(name, [*prompt, *output], len(prompt))
                except AssertionError:
                    if index == len(choices) - 1:
                        raise

    def leftovers(self, worker_id: str) -> str:
        """What is still in use on a worker, whose books balance; empty where nothing is."""
        with Client(self.gateway) as client:
            workers = {worker.worker_id: worker.address for worker in client.cluster(timeout=20).workers}
        with grpc.insecure_channel(workers[worker_id]) as channel:
            debug = debug_service_pb2_grpc.DebugServiceStub(channel)
            state = debug.CheckIntegrity(debug_service_pb2.CheckIntegrityRequest(), timeout=20)
        in_use = ("used_blocks", "leased_blocks", "quarantined_blocks", "running_requests", "waiting_requests")
        return ", ".join(f"{name} {value}" for name in in_use if (value := getattr(state, name)))


class Actor:
    """Does something again and again until `stop` is set."""

    def __init__(self, deployment: Deployment, findings: Findings, stop: threading.Event, seed: int):
        self._deployment, self._findings, self._stop, self._random = deployment, findings, stop, random.Random(seed)

    def run(self) -> None:
        raise NotImplementedError


class Caller(Actor):
    """One conversation after the other."""

    def __init__(self, deployment: Deployment, findings: Findings, stop: threading.Event, seed: int):
        super().__init__(deployment, findings, stop, seed)
        retry = RetryPolicy(retries=self._random.choice([0, 8]), wait_when_overloaded=True)
        self._client = Client(deployment.gateway, retry=retry, timeout=PATIENCE_SECONDS, tenant=f"tenant{seed % 3}")

    def run(self) -> None:
        with self._client:
            while not self._stop.is_set():
                try:
                    self._converse()
                except PASSING as error:
                    self._findings.counts[f"conversation ended by {type(error).__name__}"] += 1
                    time.sleep(0.3)
                except Exception:
                    self._findings.problem("a conversation failed", trace=traceback.format_exc()[-900:])

    def _converse(self) -> None:
        history = ids(self._random.choice([5, 30, 100, 200]), self._random.randrange(40))
        session = self._client.create_session(token_ids=history) if self._random.random() < 0.75 else None
        sessions = [session] if session else []
        try:
            for _ in range(self._random.randint(1, 8)):
                if self._stop.is_set() or len(history) > MAX_HISTORY:
                    break
                history = self._play(session, history)
                if session:
                    history = self._compare(session, history)
                    if self._random.random() < 0.1:
                        num_kept = self._random.randint(1, len(history))
                        session, history = session.fork(num_kept), history[:num_kept]
                        sessions.append(session)
        finally:
            for each in sessions:
                self._delete(each)

    def _play(self, session: Session | None, history: list[int]) -> list[int]:
        """One turn; the history after it, as far as its caller was told."""
        model = self._random.choice(MODELS)
        try:
            return self._turn(session, history, model)
        except PASSING as error:
            self._findings.counts[type(error).__name__] += 1
        except NotFoundError:
            if model != SWAPPED:
                raise
            self._findings.counts["adapter not there"] += 1
        return history

    def _turn(self, session: Session | None, history: list[int], model: str) -> list[int]:
        content = ids(self._random.randint(1, 60), self._random.randrange(10**6)) if self._random.random() < 0.7 else []
        sampling = self._draw_sampling()
        prompt = [*history, *content]
        stream = (session or self._client).generate(
            model,
            token_ids=(content or None) if session else prompt,
            timeout=self._random.uniform(0.005, 0.3) if self._random.random() < 0.08 else PATIENCE_SECONDS,
            min_delta_tokens=self._random.choice([0, 0, 0, 8, 64]),
            **sampling,
        )
        received: list[int] = []
        cancel_at = self._random.randint(0, sampling["max_tokens"]) if self._random.random() < 0.12 else None
        with stream:
            for delta in stream if cancel_at != 0 else ():
                received += delta.token_ids
                if cancel_at is not None and len(received) >= cancel_at:
                    break
            if cancel_at is not None:
                self._findings.counts["left early"] += 1
                return history
        self._check(stream, received, prompt)
        is_plain = "temperature" not in sampling and "stop" not in sampling
        if is_plain and self._random.random() < CHECKED_BY_ORACLE:
            self._deployment.check_tokens(model, prompt, received)
            self._findings.counts["checked by the oracle"] += 1
        return [*prompt, *received]

    def _draw_sampling(self) -> Any:
        sampling: dict[str, Any] = {
            "max_tokens": self._random.choice([1, 3, 10, 40]),
            "ignore_eos": self._random.random() < 0.7,
        }
        if self._random.random() < 0.4:
            sampling |= {"temperature": self._random.uniform(0.2, 1.5), "top_p": self._random.uniform(0.5, 1.0)}
            sampling |= {"top_k": self._random.choice([0, 5]), "repetition_penalty": self._random.choice([1.0, 1.2])}
        if self._random.random() < 0.2:
            sampling["logprobs"] = self._random.randrange(5)
        if self._random.random() < 0.2:
            sampling["stop"] = [self._random.choice("abcdefgh et")]
        return sampling

    def _check(self, stream: TurnStream, received: list[int], prompt: list[int]) -> None:
        result = stream.result()
        self._findings.counts["turns"] += 1
        self._findings.counts["tokens"] += len(received)
        told = (list(result.token_ids), result.usage.completion_tokens, result.usage.prompt_tokens)
        if told != (received, len(received), len(prompt)):
            self._findings.problem("a result is not what was streamed", turn=stream.turn_id, told=told, got=received)

    def _compare(self, session: Session, history: list[int]) -> list[int]:
        """The session's history, which is what was told; a turn that was left may be part of it."""
        kept = list(self._patiently(session.get).token_ids)
        if kept[: len(history)] != history:
            self._findings.problem("a history lacks what was told", session=session.session_id, kept=len(kept))
        return kept

    def _delete(self, session: Session) -> None:
        with suppress(NotFoundError):  # an earlier attempt may have done it, and its answer was lost
            self._patiently(session.delete)

    def _patiently(self, call: Any) -> Any:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return call(timeout=10)
            except PASSING:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)


class Operator(Actor):
    """Gives one name other weights again and again, and takes it away at times."""

    def run(self) -> None:
        with Client(self._deployment.gateway, timeout=PATIENCE_SECONDS) as client:
            while not self._stop.wait(self._random.uniform(0.2, 3)):
                try:
                    folder = self._deployment.specialists.folder(self._random.choice(SWAPPED_BETWEEN))
                    client.load_adapter(SWAPPED, folder, replace=True, pin=self._random.random() < 0.2)
                    self._findings.counts["adapter replaced"] += 1
                    if self._random.random() < 0.3:
                        client.unload_adapter(SWAPPED)
                except (*PASSING, NotFoundError) as error:
                    self._findings.counts[f"operator: {type(error).__name__}"] += 1
                except IcarusError as error:
                    self._findings.problem("an adapter could not be changed", error=repr(error))


class Faults(Actor):
    """Kills, ends and stops processes, one at a time, and starts them again."""

    def run(self) -> None:
        while not self._stop.wait(self._random.uniform(6, 20)):
            name = self._random.choice(["gateway", *WORKERS])
            which = self._random.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
            self._findings.counts[f"{which.name} {name}"] += 1
            try:
                self._strike(name, which)
            except Exception:
                self._findings.problem("a process did not come back", name=name, trace=traceback.format_exc()[-900:])
                return

    def _strike(self, name: str, which: signal.Signals) -> None:
        process = self._deployment.process(name)
        process.send_signal(which)
        if which is signal.SIGSTOP:
            time.sleep(self._random.uniform(0.5, 8))
            process.send_signal(signal.SIGCONT)
            return
        code = process.wait(PATIENCE_SECONDS)
        if which is signal.SIGTERM and code != 0:
            self._findings.problem("a process that was asked to end failed", name=name, code=code)
        self._deployment.start(name)
        self._deployment.wait_until_complete()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--no-faults", action="store_true", help="let every process live")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    findings, stop = Findings(), threading.Event()
    with tempfile.TemporaryDirectory(prefix="icarus-soak-") as folder:
        deployment = Deployment(Path(folder))
        try:
            _run(deployment, findings, stop, args)
        finally:
            deployment.members.stop()
    print(dict(findings.counts), f"{len(findings.problems)} problems", sep="\n")
    return 1 if findings.problems else 0


def _run(deployment: Deployment, findings: Findings, stop: threading.Event, args: argparse.Namespace) -> None:
    kinds = [Caller] * args.callers + [Operator] + ([] if args.no_faults else [Faults])
    actors = [kind(deployment, findings, stop, args.seed + index) for index, kind in enumerate(kinds)]
    threads = [threading.Thread(target=actor.run, name=type(actor).__name__, daemon=True) for actor in actors]
    for thread in threads:
        thread.start()
    time.sleep(args.seconds)
    stop.set()
    for thread in threads:
        thread.join(3 * PATIENCE_SECONDS)
        if thread.is_alive():
            findings.problem("a thread hangs", thread=thread.name)
    time.sleep(15)  # leases of readers that died run out
    for worker_id in WORKERS:
        if left := deployment.leftovers(worker_id):
            findings.problem("a worker is not idle", worker=worker_id, left=left)


if __name__ == "__main__":
    sys.exit(main())
