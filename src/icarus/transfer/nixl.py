"""Blocks over NIXL's UCX backend: RDMA and NVLink between GPUs, shared memory and TCP between CPUs.

It speaks to NIXL's bindings instead of the `nixl_agent` wrapper, because the wrapper
- fixes the progress thread's delay at 0: each agent then polls without a pause and slows its neighbours (docs/log.md).
  With a delay the thread sleeps on UCX's events;
- releases a read whose Python handle is collected, which does not stop the read;
- logs to stdout.

UCX writes its own warnings to stdout, NIXL to stderr. Their settings are theirs, not ours, but for one:
`UCX_LOG_LEVEL=error` and `NIXL_LOG_LEVEL=FATAL` in the worker's environment quieten them; `UCX_TLS` there picks
transports. NIXL's telemetry, whose Prometheus exporter would listen on every interface, is not asked for.

Known limit of UCX (the one in nixl 1.5.1, TCP only): an owner that was stopped during a read, and continues after its
reader died, may be aborted by UCX as it answers. Shared memory and a reader killed under a running owner are fine.
Known limit of NIXL on GPUs: its progress thread has no CUDA context, and others have seen a reader crash there in
cuEventQuery, after hours (ai-dynamo/nixl#2102).
"""

import importlib
import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from icarus.transfer.init_lock import only_one_initialises
from icarus.transfer.transport import (
    PoolRegion,
    ReadState,
    TransferError,
    Transport,
    check_blocks,
    decode_metadata,
    encode_metadata,
)

logger = logging.getLogger(__name__)

_KIND = "nixl"
_NAME_BYTES = 32
_PROGRESS_DELAY_MICROSECONDS = 1000
"""Longest sleep of NIXL's progress thread when no event wakes it."""


@dataclass(eq=False)
class _Connection:
    """One agent that can be read. `retired`: no name leads to it any more; it closes with its last read."""

    agent: str
    metadata: bytes
    num_blocks: int
    descriptors: int
    in_flight: int = 0
    broken: bool = False
    retired: bool = False


@dataclass(eq=False)
class _Read:
    """A posted read. `settled`: none of its bytes can land any more."""

    connection: _Connection
    blocks: tuple[np.ndarray, np.ndarray]
    """Local and remote."""
    request: int
    error: str = ""
    settled: bool = False
    probe: "_Read | None" = None


def backend_parameters(region: PoolRegion, ucx_settings: Mapping[str, str] | None = None) -> dict[str, str]:
    """What NIXL's `createBackend` gets for UCX. Without the setting for GPUs, UCX reads one's memory from another
    process directly only where NVLink joins all GPUs, and by TCP elsewhere."""
    for_gpus = {"CUDA_IPC_ENABLE_GET_ZCOPY": "on"} if region.device == "cuda" else {}
    settings = {**for_gpus, **(ucx_settings or {})}
    joined = ",".join(f"{key}={value}" for key, value in settings.items())
    return {"engine_config": joined} if joined else {}


class NixlTransport(Transport):
    """One NIXL agent with one registered pool, one descriptor a block.

    `ucx_settings`: UCX configuration for this agent alone, e.g. {"TLS": "tcp"}; the environment's UCX_* win over it.
    Raises TransferError when the agent cannot be made or the pool cannot be registered.
    """

    def __init__(self, region: PoolRegion, ucx_settings: Mapping[str, str] | None = None):
        super().__init__(region)
        self._nixl: Any = importlib.import_module("nixl")
        self._name = uuid.uuid4().hex  # new at every start: a restarted peer is another agent, never a stale one
        self._connections: dict[str, _Connection] = {}
        self._open: dict[str, _Connection] = {}  # by agent, retired ones included
        with only_one_initialises(), self._wrapped("cannot start NIXL's UCX backend"):
            config = self._nixl.nixlAgentConfig()
            config.useProgThread = True
            config.pthrDelay = _PROGRESS_DELAY_MICROSECONDS
            config.captureTelemetry = False
            self._agent: Any = self._nixl.nixlAgent(self._name, config)
            self._backend = self._agent.createBackend("UCX", backend_parameters(region, ucx_settings))
        with self._wrapped(f"cannot register a pool of {region.num_bytes} bytes on {region.device} with NIXL"):
            entry = (region.base_address, region.num_bytes, region.device_index, "")
            self._registration = self._nixl.nixlRegDList(self._memory_kind(region), [entry])
            self._agent.registerMem(self._registration, [self._backend])
            self._local = self._describe_blocks(self._nixl.NIXL_INIT_AGENT, region)

    def metadata(self) -> bytes:
        return encode_metadata(_KIND, self.region, self._name.encode() + self._agent.getLocalMD())

    def connect(self, peer: str, metadata: bytes, num_blocks: int) -> None:
        region, blob = decode_metadata(_KIND, self.region, metadata, num_blocks)
        current = self._connections.get(peer)
        if current and current.metadata == metadata and not current.broken:
            return
        self.disconnect(peer)
        agent = blob[:_NAME_BYTES].decode(errors="replace")
        if agent == self._name:
            raise TransferError(f"{peer} is this worker itself; read its own blocks in place")
        if agent in self._open:
            raise TransferError(f"the agent of {peer} still has a connection with reads in flight; try again later")
        with self._wrapped(f"cannot connect to {peer}"):
            try:
                self._agent.loadRemoteMD(blob[_NAME_BYTES:])
                descriptors = self._describe_blocks(agent, region)
            except Exception:
                self._forget_agent(agent)
                raise
        connection = _Connection(agent, metadata, region.num_blocks, descriptors)
        self._connections[peer] = self._open[agent] = connection

    def disconnect(self, peer: str) -> None:
        connection = self._connections.pop(peer, None)
        if connection:
            connection.retired = True
            self._close_if_unused(connection)

    def post_read(self, peer: str, remote_blocks: Sequence[int], local_blocks: Sequence[int]) -> _Read:
        connection = self._connections.get(peer)
        if connection is None or connection.broken:
            state = "no connection to" if connection is None else "a broken connection to"
            raise TransferError(f"{state} {peer}; connect with fresh metadata")
        check_blocks(peer, remote_blocks, connection.num_blocks, local_blocks, self.region.num_blocks)
        local, remote = (np.asarray(blocks, dtype=np.int32) for blocks in (local_blocks, remote_blocks))
        with self._wrapped(f"cannot prepare a read of {len(local)} blocks from {peer}"):
            read = self._prepare_read(connection, local, remote)
        connection.in_flight += 1
        self._post(read)
        return read

    def poll(self, handle: _Read) -> ReadState:
        if not handle.settled and not handle.error:
            self._ask(handle)
        elif not handle.settled:
            self._probe(handle)
        if handle.error and not handle.settled:
            raise TransferError(handle.error)
        if handle.error:
            return ReadState.FAILED
        return ReadState.DONE if handle.settled else ReadState.PENDING

    def release(self, handle: _Read) -> None:
        for read in (handle, handle.probe):
            if read:
                with suppress(Exception):  # of a dead peer's read: there is nothing left to free then
                    self._agent.releaseXferReq(read.request)
        handle.connection.in_flight -= 1
        self._close_if_unused(handle.connection)

    def close(self) -> None:
        for connection in self._open.values():
            self._agent.releasedDlistH(connection.descriptors)
            self._forget_agent(connection.agent)
        self._connections.clear()
        self._open.clear()
        self._agent.releasedDlistH(self._local)
        self._agent.deregisterMem(self._registration, [self._backend])
        self._agent = None  # closes every endpoint

    def _prepare_read(self, connection: _Connection, local: np.ndarray, remote: np.ndarray) -> _Read:
        request = self._agent.makeXferReq(
            self._nixl.NIXL_READ, self._local, local, connection.descriptors, remote, b"", [self._backend]
        )
        return _Read(connection, (local, remote), request)

    def _post(self, read: _Read) -> None:
        self._advance(read, lambda: self._agent.postXferReq(read.request, b""))

    def _ask(self, read: _Read) -> None:
        self._advance(read, lambda: self._agent.getXferStatus(read.request))

    def _probe(self, failed: _Read) -> None:
        """NIXL asks UCX no more about a read that failed. So a block of it is read anew: the endpoint is gone and so is
        all that it carried, or the flush that ends each read has seen all before it land. Where this one fails as well
        nobody knows, for good."""
        if failed.probe is None:
            local, remote = failed.blocks
            try:
                failed.probe = self._prepare_read(failed.connection, local[:1], remote[:1])
            except self._nixl.nixlNotFoundError:  # NIXL has forgotten the agent: the endpoint is gone
                failed.settled = True
                return
            self._post(failed.probe)
        elif not failed.probe.error:
            self._ask(failed.probe)
        failed.settled = failed.probe.settled

    def _advance(self, read: _Read, step: Callable[[], Any]) -> None:
        """Runs a post or a status check and notes the outcome. The bindings raise, and may return an error as well."""
        try:
            status = step()
        except Exception as error:
            lands = isinstance(error, self._nixl.nixlBackendError | self._nixl.nixlUnknownError)
            self._fail(read, str(error) or type(error).__name__, settled=not lands)
            return
        if status == self._nixl.NIXL_SUCCESS:
            read.settled = True
        elif status != self._nixl.NIXL_IN_PROG:
            self._fail(read, str(status), settled=False)

    def _fail(self, read: _Read, cause: str, settled: bool) -> None:
        """A read of several blocks may fail on one while others are still under way, unless the endpoint is gone."""
        logger.warning("NIXL read from agent %s failed: %s", read.connection.agent, cause)
        read.connection.broken = True
        read.error, read.settled = f"NIXL read failed: {cause}", settled

    def _close_if_unused(self, connection: _Connection) -> None:
        """Closing an endpoint does not stop its reads, and would hide whether they have landed: the last one closes."""
        if connection.retired and not connection.in_flight and self._open.pop(connection.agent, None):
            self._agent.releasedDlistH(connection.descriptors)
            self._forget_agent(connection.agent)

    def _forget_agent(self, agent: str) -> None:
        with suppress(Exception):  # NIXL forgets a dead agent by itself
            self._agent.invalidateRemoteMD(agent)

    def _describe_blocks(self, agent: str, region: PoolRegion) -> int:
        """A handle of the descriptors of all blocks of an agent's pool."""
        rows = np.empty((region.num_blocks, 3), dtype=np.uint64)
        rows[:, 0] = region.base_address + np.arange(region.num_blocks, dtype=np.uint64) * region.block_bytes
        rows[:, 1] = region.block_bytes
        rows[:, 2] = region.device_index
        return self._agent.prepXferDlist(
            agent, self._nixl.nixlXferDList(self._memory_kind(region), rows), [self._backend]
        )

    def _memory_kind(self, region: PoolRegion) -> Any:
        kinds = {"cpu": self._nixl.DRAM_SEG, "cuda": self._nixl.VRAM_SEG}
        if region.device not in kinds:
            raise TransferError(f"NIXL reads cpu and cuda pools, not {region.device!r}")
        return kinds[region.device]

    @contextmanager
    def _wrapped(self, what: str) -> Iterator[None]:
        try:
            yield
        except TransferError:
            raise
        except Exception as error:
            raise TransferError(f"{what}: {str(error) or type(error).__name__}") from error
