"""How blocks really get from one process of this machine to another: measured, over NIXL, as workers do it."""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from icarus.cli.doctor.finding import Finding, fail, ok, size, warn
from icarus.cli.doctor.machine import INSTALL, is_installed

METADATA, RESULT = "metadata ", "result "
"""How the lines of the two processes begin: UCX's report is in between."""
_BLOCK_BYTES = 2**20
_MAX_BLOCKS = 64
_LIMIT_SECONDS = 180.0
_NAME = "measured path"
_CMA = "shared memory: the reader copies from the owner's memory"
_SHARE = (
    "no shared memory between processes here: containers need a common ipc and pid namespace (--ipc, --pid) and one "
    "user, and CAP_SYS_PTRACE only where kernel.yama.ptrace_scope is on; UCX_TLS, where set, must allow it"
)


def examine_path(read_mib: int) -> Iterator[Finding]:
    """NIXL's plugins, then the bytes a second at which one process read another one's, and over which transport."""
    if not is_installed("nixl"):
        yield warn(_NAME, "not measured: nixl is not installed", INSTALL)
        return
    yield _plugins()
    rounds = math.ceil(read_mib / _MAX_BLOCKS)  # a block is a MiB
    yield _measure(math.ceil(read_mib / rounds), rounds)


def _plugins() -> Finding:
    """Asked in a process of its own: native code that dies there takes nothing else with it."""
    program = "import nixl; print('plugins', *nixl.nixlAgent('doctor', nixl.nixlAgentConfig()).getAvailPlugins())"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=_LIMIT_SECONDS, check=False
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("plugins ")), "")
    names = line.split()[1:]
    if "UCX" not in names:
        found = ", ".join(names) or f"none; it ended with {done.returncode}: {_last_line(done.stderr)}"
        return fail("nixl plugins", found, "workers move blocks by UCX: reinstall nixl")
    return ok("nixl plugins", ", ".join(names))


def _measure(num_blocks: int, rounds: int) -> Finding:
    """Reads a pool of so many blocks, `rounds` times."""
    try:
        with _process("owner", num_blocks, rounds) as owner, _process("reader", num_blocks, rounds) as reader:
            assert owner.stdout and reader.stdin
            lines = iter(owner.stdout.readline, "")
            metadata = next((line for line in lines if line.startswith(METADATA)), "").removeprefix(METADATA)
            out, err = reader.communicate(metadata, timeout=_LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        return fail(_NAME, f"no answer within {_LIMIT_SECONDS:g} s", "run with UCX_LOG_LEVEL=info to see why")
    result = next((line for line in out.splitlines() if line.startswith(RESULT)), "").removeprefix(RESULT)
    if not result:
        return fail(_NAME, _last_line(err or out), "workers cannot read each other's blocks; see UCX's message")
    return _judge(json.loads(result), transport_of(out + err), rounds * num_blocks * _BLOCK_BYTES)


def _judge(result: dict[str, Any], transport: str | None, num_bytes: int) -> Finding:
    way = transport or "a transport that UCX did not name"
    value = f"{size(num_bytes)} at {result['bytes_per_second'] / 1e9:.2f} GB/s over {way}"
    if not result["intact"]:
        return fail(_NAME, f"{value}: bytes differ", "do not serve from this machine; report it with this output")
    if transport is not None and transport.startswith("tcp"):
        return warn(_NAME, value, _SHARE)
    return ok(_NAME, f"{value} ({_CMA})" if transport is not None and transport.startswith("cma") else value)


def transport_of(report: str) -> str | None:
    """The transport of large reads from another process, out of UCX's own report (UCX_PROTO_INFO); None if absent.

    The report is made of tables: a title of two lines (whose endpoint; which operation), then rows of size range,
    method and "transport/device".
    """
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in report.splitlines() if "|" in line]
    found, endpoint, is_read = None, "", False
    for row in cells:
        if len(row) == 1 and re.search(r"(self|intra-node|inter-node) cfg", row[0]):
            endpoint, is_read = row[0], False
        elif len(row) == 1:
            is_read = "remote memory read by ucp_get" in row[0] and " self cfg" not in endpoint
        elif is_read and len(row) == 3 and row[0].endswith("..inf"):
            found = row[2] if row[1] != "software emulation" else f"{row[2]} (emulated by messages)"
    return found


@contextmanager
def _process(role: str, num_blocks: int, rounds: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "icarus.cli.doctor.peer", role, *map(str, (num_blocks, _BLOCK_BYTES, rounds))]
    pipe = subprocess.PIPE
    errors = pipe if role == "reader" else subprocess.DEVNULL
    process = subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=errors, text=True, env={**os.environ, "UCX_PROTO_INFO": "y"}
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "nothing was said")
