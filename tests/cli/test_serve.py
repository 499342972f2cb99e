"""`icarus serve` before it serves."""

import fcntl
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from waiting import wait_until


def has_open(pid: int, file: Path) -> bool:
    try:
        return any(os.readlink(link) == str(file) for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:  # one of them was closed meanwhile
        return False


def test_sigterm_ends_it_while_its_model_loads(tmp_path):
    """By a handler: the first process of a container ignores a SIGTERM that it has none for."""
    model, cache = tmp_path / "model.gguf", tmp_path / "cache"
    model.write_bytes(b"somebody else converts this")
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    lock = cache / "icarus" / "models" / f"{digest[:16]}-v1" / "lock"
    lock.parent.mkdir(parents=True)
    command = [sys.executable, "-m", "icarus.cli.main", "serve", "gateway", f"--model-path={model}"]
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with subprocess.Popen(command, env={**os.environ, "XDG_CACHE_HOME": str(cache)}) as process:
            wait_until(lambda: has_open(process.pid, lock), 60)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 128 + signal.SIGTERM


def test_cpus_are_a_workers(tmp_path):
    """A gateway that reads the same file is not bound."""
    file = tmp_path / "icarus.toml"
    file.write_text('[model]\npath = "/nowhere"\n[engine]\ncpus = "8000"\n')
    for role, told in (("decode", "[engine] cpus: 8000"), ("gateway", "/nowhere")):
        command = [sys.executable, "-m", "icarus.cli.main", "serve", role, f"--config={file}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2 and told in done.stderr, done.stderr
