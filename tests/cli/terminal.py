"""A command in a terminal of its own, as a person would use it."""

import os
import pty
import re
import select
import subprocess
import sys
import time

_BECOME_FOREGROUND = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "icarus.cli.main", *sys.argv[1:]])
"""


class Terminal:
    """Runs `icarus ARGUMENTS` on a pseudo-terminal. `screen` is all that was shown."""

    def __init__(self, *arguments: str):
        self._end, its_end = pty.openpty()
        command = [sys.executable, "-c", _BECOME_FOREGROUND, *arguments]
        environment = {**os.environ, "TERM": "dumb"}
        self.process = subprocess.Popen(
            command, stdin=its_end, stdout=its_end, stderr=its_end, start_new_session=True, env=environment
        )
        os.close(its_end)
        self.screen = ""

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._end)

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def wait_for(self, pattern: str, seconds: float = 60.0) -> None:
        """Until the pattern is shown after what an earlier call has waited for."""
        deadline = time.monotonic() + seconds
        while not (match := re.search(pattern, self._unseen)):
            assert time.monotonic() < deadline and self._read(), f"{pattern!r} was not shown in:\n{self.screen}"
        self._seen += match.end()

    def wait(self, seconds: float = 60.0) -> int:
        """The exit status."""
        while self._read():
            pass
        return self.process.wait(seconds)

    _seen = 0

    @property
    def _unseen(self) -> str:
        return self.screen[self._seen :]

    def _read(self) -> bool:
        """Takes what is shown within a moment; False once the program has ended."""
        if not select.select([self._end], [], [], 1.0)[0]:
            return True
        try:
            data = os.read(self._end, 65536)
        except OSError:  # Linux says so when the other end is closed
            data = b""
        self.screen += data.decode(errors="replace").replace("\r\n", "\n")
        return bool(data)
