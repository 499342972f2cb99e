"""vLLM as the peer's scripts start it."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from icarus.errors import InvalidInputError, UnavailableError
from icarus.rpc.listen import hold_port

_STOP_SECONDS = 30.0
_NUM_LINES = 15


@dataclass(frozen=True)
class PeerFolders:
    """The peer's scripts, and where its setup.sh installed it."""

    scripts: Path
    installed: Path

    @property
    def python(self) -> Path:
        return self.installed / "venv" / "bin" / "python"

    @property
    def workload(self) -> Path:
        return self.scripts / "workload.py"

    def check(self) -> None:
        """Raises InvalidInputError naming what is missing."""
        for path in (self.scripts / "serve.sh", self.workload):
            if not path.is_file():
                raise InvalidInputError(f"--peer {self.scripts} has no {path.name}; give the folder of its scripts")
        for path in (self.python, self.installed / "model" / "config.json", self.installed / "lora_nokv"):
            if not path.exists():
                raise InvalidInputError(f"{path} does not exist; install the peer there: setup.sh {self.installed}")


@dataclass(frozen=True)
class VllmServer:
    """A server that answers."""

    url: str
    pid: int


@contextmanager
def vllm_server(folders: PeerFolders, mode: str, log: Path) -> Iterator[VllmServer]:
    """`mode` as serve.sh has it. Raises UnavailableError with its last words where it does not come up."""
    held = hold_port("127.0.0.1:0", "vLLM's server")
    port = held.getsockname()[1]
    starter = subprocess.Popen(
        ["bash", str(folders.scripts / "serve.sh"), str(folders.installed), mode, str(log)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PORT": str(port)},
        start_new_session=True,  # the server stays in the starter's process group
    )
    pid = 0
    try:
        out, err = starter.communicate()
        if starter.returncode != 0 or not out.strip().isdigit():
            words = "\n".join(err.strip().splitlines()[-_NUM_LINES:])
            raise UnavailableError(f"vLLM ({mode}) did not come up; the last that was said:\n{words}")
        pid = int(out)
        yield VllmServer(f"http://127.0.0.1:{port}", pid)
    finally:
        _stop(pid, starter.pid)
        held.close()


def _stop(pid: int, group: int) -> None:
    """Politely, then all that is left of its process group."""
    deadline = time.monotonic() + _STOP_SECONDS
    with suppress(ProcessLookupError):
        while pid and time.monotonic() < deadline:
            os.kill(pid, signal.SIGTERM)
            time.sleep(0.5)
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
