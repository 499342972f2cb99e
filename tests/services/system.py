"""A running cluster as the tests see it."""

import os
import signal
import time
from typing import Self
from urllib.request import urlopen

import grpc
from engine.harness import Specialists
from prometheus_client.parser import text_string_to_metric_families
from waiting import wait_until

from icarus.cli.local import LocalCluster
from icarus.client import Client
from icarus.client.results import TurnResult, Worker
from icarus.worker.v1 import debug_service_pb2, debug_service_pb2_grpc

BLOCK_SIZE = 8


class System:
    """A cluster with what a test may want to do to it."""

    def __init__(self, cluster: LocalCluster, specialists: Specialists):
        self._cluster = cluster
        self.specialists = specialists

    def __enter__(self) -> Self:
        self._cluster.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._cluster.__exit__(*exc_info)

    @property
    def address(self) -> str:
        return self._cluster.address

    @property
    def metrics(self) -> dict[str, str]:
        """Addresses of the processes' metrics by name: gateway, prefill-0, ..."""
        return self._cluster.metrics

    def workers(self) -> dict[str, Worker]:
        with Client(self.address) as client:
            return {worker.worker_id: worker for worker in client.cluster(timeout=20).workers}

    def kv_written(self) -> int:
        """KV positions written by all workers, counted at the forward call."""
        return sum(worker.kv_written_tokens for worker in self.workers().values())

    def integrity(self, worker_id: str) -> debug_service_pb2.CheckIntegrityResponse:
        """Raises if the worker's books do not balance."""
        with grpc.insecure_channel(self.workers()[worker_id].address) as channel:
            debug = debug_service_pb2_grpc.DebugServiceStub(channel)
            return debug.CheckIntegrity(debug_service_pb2.CheckIntegrityRequest())

    def wait_until_idle(self, seconds: float = 30.0) -> None:
        """Every worker's books balance all the while, and in the end no block is in use."""
        deadline = time.monotonic() + seconds
        while True:
            states = {worker_id: self.integrity(worker_id) for worker_id in self.workers()}
            if not any(
                state.used_blocks or state.running_requests or state.waiting_requests for state in states.values()
            ):
                return
            assert time.monotonic() < deadline, f"blocks still in use: {states}"
            time.sleep(0.05)

    def cache(self, client: Client, model: str, token_ids: list[int]) -> None:
        """A turn over these tokens. The gateway knows of their blocks afterwards: the second turn waited for that."""
        session = client.create_session(token_ids=token_ids)
        for _ in range(2):
            session.generate(model, max_tokens=1, ignore_eos=True).result()
        session.delete()

    def wait_for_heartbeats(self) -> None:
        """Every worker has said how it is since this was called: its second heartbeat was sent after that."""
        for _ in range(2):
            start = time.monotonic()
            wait_until(lambda start=start: self._last_heard() > start)

    def _last_heard(self) -> float:
        """When a heartbeat of the worker that has been silent the longest came."""
        before = time.monotonic()
        return before - max(self.gateway_metric("icarus_worker_heartbeat_age_seconds"))

    def gateway_metric(self, name: str, **labels: str) -> list[float]:
        """The values of every series that has these labels."""
        with urlopen(f"http://{self.metrics['gateway']}/metrics", timeout=20) as answer:
            families = text_string_to_metric_families(answer.read().decode())
            samples = [sample for family in families for sample in family.samples]
        return [s.value for s in samples if s.name == name and labels.items() <= s.labels.items()]

    def signal(self, name: str, which: signal.Signals) -> None:
        os.kill(self._cluster.pids()[name], which)

    def log(self, name: str) -> str:
        """What a process has logged: gateway, prefill-0, decode-0, ..."""
        return (self._cluster.log_dir / f"{name}.log").read_text()

    def check_greedy(self, model: str, prompt: list[int], result: TurnResult) -> None:
        """Every token is the oracle's choice for this model."""
        name = "" if model == "tiny" else model
        self.specialists.check_tokens(name, [*prompt, *result.token_ids], len(prompt))
