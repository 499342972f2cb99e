"""A gateway and its workers as child processes on this machine."""

import contextlib
import dataclasses
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import grpc

from icarus.cli.flags import to_flags
from icarus.cli.health import SERVING, ask_health
from icarus.cli.sections import of_process
from icarus.client.connection import Stubs, Target
from icarus.config import Config, GatewaySection, MetricsSection, ModelSection, WorkerSection
from icarus.errors import ConfigError, DeadlineError, IcarusError, UnavailableError
from icarus.rpc.listen import hold_port
from icarus.types import Role
from icarus.v1.cluster_service_pb2 import GetClusterRequest

_STOP_SECONDS = 15.0
_DRAIN_SECONDS = 10.0
"""The most that a child may take to drain: whoever stops a cluster of one machine waits for it."""
_SET_HERE = ("id", "address", "advertise", "gateways")
"""Of `[worker]`: the name and place of a single one."""
_POLL_SECONDS = 0.1
_ANSWER_SECONDS = 5.0
_ERROR_PREFIX = "icarus: error: "


@dataclass(frozen=True)
class _Child:
    name: str
    process: subprocess.Popen[bytes]
    log: Path


def unheeded(config: Config) -> list[str]:
    """A line for each setting that was changed and that a LocalCluster has otherwise."""
    default = Config()
    changed = [name for name in _SET_HERE if getattr(config.worker, name) != getattr(default.worker, name)]
    lines = [f"[worker] {name} is not heeded: each worker here gets its own" for name in changed]
    for name in ("gateway", "worker"):
        seconds = getattr(config, name).drain_seconds
        if seconds > _DRAIN_SECONDS and seconds != getattr(default, name).drain_seconds:
            lines.append(f"[{name}] drain_seconds is {seconds:g}; here it is {_DRAIN_SECONDS:g} at most")
    return lines


def resolve_section(model: ModelSection, progress: Callable[[str], None]) -> ModelSection:
    """The section with a folder in place of an alias or a hub id, and the name that this would otherwise lose."""
    from icarus.model.hub import resolve_model

    folder = resolve_model(model.path, progress)
    return dataclasses.replace(model, path=str(folder), name=model.served_name)


def on_a_free_port(gateway: GatewaySection) -> GatewaySection:
    """The section of a gateway that is in nobody's way, for clients and workers alike."""
    return dataclasses.replace(gateway, address="127.0.0.1:0", worker_address="")


class LocalCluster:
    """Starts on entering, stops on leaving. `address` is the gateway's.

    There is a decode worker `decode-i` for each list of `decode_adapters` (`NAME=FOLDER` or `NAME=FOLDER:private`) and
    `num_prefill` workers `prefill-i` with `prefill_adapters`. They share this config; addresses and names are set
    here, but the gateway keeps its ports unless they are 0. The model is found, and converted if need be, once, here.
    `metrics` says where each process serves its metrics, by name; nowhere unless the config has an address for them,
    which is the gateway's: the workers take the ports that follow.

    Children die with this process, however it ends: each watches a pipe from it. Building it raises ConfigError for an
    address that cannot be listened on: whoever else listens there would seem to be this gateway. Until it stops it
    holds the ports that it gave its children, so that no other process is given one of them. Starting raises
    ConfigError where a child found its settings wrong, UnavailableError with the tail of its log where it died, and
    DeadlineError.
    """

    def __init__(
        self,
        config: Config,
        *,
        decode_adapters: Sequence[Sequence[str]] = ((),),
        prefill_adapters: Sequence[str] = (),
        num_prefill: int = 1,
        log_dir: str | Path | None = None,
        startup_seconds: float = 300.0,
        progress: Callable[[str], None] | None = None,
    ):
        self.config = config
        self._workers = [(f"{Role.PREFILL}-{i}", Role.PREFILL, prefill_adapters) for i in range(num_prefill)]
        self._workers += [(f"{Role.DECODE}-{i}", Role.DECODE, each) for i, each in enumerate(decode_adapters)]
        names = ["gateway", *(name for name, _, _ in self._workers)]
        with contextlib.ExitStack() as ports:
            hold = partial(_hold_address, ports)
            gateway, metrics = config.gateway, config.metrics.address
            self.address = hold(gateway.address, "[gateway] address")
            self._worker_address = gateway.worker_address and hold(gateway.worker_address, "[gateway] worker_address")
            self.metrics = _metrics_addresses(metrics, names, hold) if metrics else {}
            self._ports = ports.pop_all()
        self._owns_log_dir = log_dir is None
        self.log_dir = Path(log_dir or tempfile.mkdtemp(prefix="icarus-"))
        self._startup_seconds = startup_seconds
        self._progress = progress or (lambda line: None)
        self._children: list[_Child] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def pids(self) -> dict[str, int]:
        """Process ids by name: gateway, prefill-0, decode-0, ..."""
        return {child.name: child.process.pid for child in self._children}

    def check(self) -> None:
        """Raises ConfigError or UnavailableError if a child has died."""
        for child in self._children:
            if (code := child.process.poll()) is not None:
                raise _death(child, code)

    def watch(self) -> None:
        """Returns never; raises as `check` does once a child dies."""
        while True:
            self.check()
            time.sleep(0.5)

    def stop(self) -> None:
        """Ends every child: politely, then not."""
        for child in self._children:
            child.process.terminate()
        deadline = time.monotonic() + _STOP_SECONDS
        for child in self._children:
            _reap(child.process, max(deadline - time.monotonic(), 0.0))
        self._children.clear()
        self._ports.close()
        if self._owns_log_dir:
            shutil.rmtree(self.log_dir, ignore_errors=True)

    def _start(self) -> None:
        config = dataclasses.replace(self.config, model=resolve_section(self.config.model, self._progress))
        try:
            self.log_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"log folder {self.log_dir} cannot be made: {error.strerror}") from None
        drain_seconds = min(config.gateway.drain_seconds, _DRAIN_SECONDS)
        section = dataclasses.replace(
            config.gateway, address=self.address, worker_address=self._worker_address, drain_seconds=drain_seconds
        )
        gateway = dataclasses.replace(config, gateway=section)
        self._spawn("gateway", "gateway", gateway)
        for name, role, adapters in self._workers:
            worker = _of_child(config.worker, name, self._worker_address or self.address, adapters)
            self._spawn(name, role, dataclasses.replace(config, worker=worker))
        self._progress(f"starting {', '.join(child.name for child in self._children)}")
        self._wait_until_ready()

    def _spawn(self, name: str, role: str, config: Config) -> None:
        if name in self.metrics:
            config = dataclasses.replace(config, metrics=MetricsSection(self.metrics[name]))
        flags = to_flags(config, of_process(role))
        command = [sys.executable, "-m", "icarus.cli.main", "serve", role, "--stop-with-stdin", *flags]
        log = self.log_dir / f"{name}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=stream, stderr=stream, start_new_session=True
            )
        self._children.append(_Child(name, process, log))

    def _wait_until_ready(self) -> None:
        waiting = {child.name for child in self._children}
        deadline = time.monotonic() + self._startup_seconds
        while waiting:
            self.check()
            if time.monotonic() > deadline:
                names = ", ".join(sorted(waiting))
                raise DeadlineError(f"{names} not ready after {self._startup_seconds:g} s\n{self._tails(waiting)}")
            for name in waiting & _serving(self.address):
                waiting.remove(name)
                self._progress(f"{name} is ready{self._where_metrics_are(name)}")
            time.sleep(_POLL_SECONDS)

    def _where_metrics_are(self, name: str) -> str:
        return f"; metrics at http://{self.metrics[name]}/metrics" if name in self.metrics else ""

    def _tails(self, names: set[str]) -> str:
        return "\n".join(f"{child.name}: {_tail(child.log)}" for child in self._children if child.name in names)


def _of_child(worker: WorkerSection, name: str, gateway: str, adapters: Sequence[str]) -> WorkerSection:
    """The section for one of several workers here, whatever it says of the name and place of a single one."""
    return dataclasses.replace(
        worker,
        id=name,
        address="127.0.0.1:0",
        advertise="",
        gateways=(gateway,),
        adapters=tuple(adapters),
        drain_seconds=min(worker.drain_seconds, _DRAIN_SECONDS),
    )


def _hold_address(ports: contextlib.ExitStack, address: str, setting: str) -> str:
    """The address with a free port in place of port 0, held until `ports` closes. Raises ConfigError where it cannot be
    listened on."""
    port = ports.enter_context(hold_port(address, setting)).getsockname()[1]
    return f"{address.rpartition(':')[0]}:{port}"


def _metrics_addresses(address: str, names: Sequence[str], hold: Callable[[str, str], str]) -> dict[str, str]:
    """Each name's: the first has the address, the others the ports that follow; any free ones in place of port 0."""
    host, _, port = address.rpartition(":")
    following = port.isdecimal() and port != "0"
    return {
        name: hold(f"{host}:{int(port) + i}" if following else address, "[metrics] address")
        for i, name in enumerate(names)
    }


def _serving(gateway: str) -> set[str]:
    """Who is registered and says SERVING, the gateway included."""
    if not _is_serving(gateway):
        return set()
    with _target(gateway).open_channel(grpc) as channel:
        try:
            workers = Stubs(channel).cluster.GetCluster(GetClusterRequest(), timeout=_ANSWER_SECONDS).workers
        except grpc.RpcError:
            return {"gateway"}
    return {"gateway", *(worker.worker_id for worker in workers if _is_serving(worker.address))}


def _is_serving(address: str) -> bool:
    try:
        return ask_health(_target(address)) == SERVING
    except UnavailableError:
        return False


def _target(address: str) -> Target:
    return Target(address, timeout=_ANSWER_SECONDS, on_this_machine=True)


def _death(child: _Child, code: int) -> IcarusError:
    tail = _tail(child.log)
    last = tail.rpartition("\n")[2]
    if code == 2 and last.startswith(_ERROR_PREFIX):
        return ConfigError(f"{child.name}: {last.removeprefix(_ERROR_PREFIX)}")
    return UnavailableError(f"{child.name} ended with exit code {code}; the last of its log:\n{tail}")


def _tail(log: Path, num_lines: int = 20) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-num_lines:])


def _reap(process: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdin is not None:
        process.stdin.close()
