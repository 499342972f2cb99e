"""What `icarus doctor` finds at a running gateway."""

from collections.abc import Iterator
from typing import Any

from icarus.cli.doctor.finding import Finding, fail, ok, warn
from icarus.cli.gateway import advice_for
from icarus.cli.health import SERVING, ask_health
from icarus.client import Client, LeftOutWorker, RetryPolicy, Worker
from icarus.client.connection import Target
from icarus.errors import IcarusError, UnavailableError
from icarus.types import Role

_LIMIT_SECONDS = 10.0
_HEARD_OF_LATELY_SECONDS = 3.0
"""With the default heartbeat, a worker is left out for its silence alone after that."""


def examine_gateway(address: str, **options: Any) -> Iterator[Finding]:
    """Its health, its workers, what can be asked for. `options` are a client's."""
    options = {"timeout": _LIMIT_SECONDS, **options}
    health = _health(Target(address, **options))
    yield health
    if health.advice:
        return
    with Client(address, retry=RetryPolicy(retries=0), **options) as client:
        try:
            cluster = client.cluster()
            yield from map(_worker, cluster.workers)
            yield from map(_left_out, cluster.left_out)
            yield _roles(cluster.workers)
            yield ok("models", ", ".join(model.name for model in client.models()))
        except IcarusError as error:
            yield fail("gateway", str(error), "the gateway's log says more")


def _health(target: Target) -> Finding:
    try:
        status = ask_health(target)
    except UnavailableError as error:
        return fail("gateway", str(error), advice_for(error))
    if status != SERVING:
        return fail("gateway", f"{target.address}: {status}", "it is stopping, or starting: try again")
    return ok("gateway", f"{target.address}: {status}")


def _worker(worker: Worker) -> Finding:
    name = f"worker {worker.worker_id}"
    usable = worker.free_blocks + worker.cached_blocks
    value = (
        f"{worker.role} at {worker.address}, {usable} of {worker.total_blocks} blocks usable, "
        f"{worker.running_requests} requests running, {worker.waiting_requests} waiting"
    )
    if worker.quarantined_blocks:
        advice = "a worker that it read from hangs or has died; restart this one if it stays so"
        return warn(name, f"{value}, {worker.quarantined_blocks} blocks in quarantine", advice)
    return ok(name, value)


def _left_out(worker: LeftOutWorker) -> Finding:
    name = f"worker {worker.worker_id}"
    where = f"{worker.role} at {worker.address}"
    if worker.draining:
        return warn(name, f"{where} drains: it ends its turns and gets no more", "nothing, if it was told to stop")
    value = f"{where} gets no turns: last heard of {worker.silent_seconds:.0f} s ago"
    if worker.silent_seconds <= _HEARD_OF_LATELY_SECONDS:
        advice = f"the gateway cannot reach {worker.address} (see [worker] advertise), or the worker's engine hangs"
        return warn(name, value, advice)
    return warn(name, value, "its log says more, if it runs still; else start it again")


def _roles(workers: tuple[Worker, ...]) -> Finding:
    count = {role: sum(worker.role is role for worker in workers) for role in Role}
    value = f"{count[Role.DECODE]} decode, {count[Role.PREFILL]} prefill"
    if not count[Role.DECODE]:
        return fail("workers", value, "start one: icarus serve decode --worker-gateways ADDRESS")
    return ok("workers", value if count[Role.PREFILL] else f"{value}: decode workers do it")
