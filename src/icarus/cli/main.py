"""The `icarus` command: runs a subcommand and turns what goes wrong into a line and an exit code."""

import errno
import io
import os
import sys
from collections.abc import Sequence

from icarus.cli.parser import build_parser
from icarus.errors import (
    AlreadyExistsError,
    ConfigError,
    FailedPreconditionError,
    IcarusError,
    InvalidInputError,
    NotFoundError,
)

_USERS_MISTAKES = (AlreadyExistsError, ConfigError, FailedPreconditionError, InvalidInputError, NotFoundError)
_EXTRAS = {
    "opentelemetry": "tracing",
    "gguf": "demo",
    "transformers": "train",
    "peft": "train",
    "accelerate": "train",
    "matplotlib": "bench",
}
"""Module -> the extra that brings it; the engine's bring the others."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line. 0: done; 1: it failed while running; 2: wrong input or settings; 130: Ctrl-C."""
    _prepare_streams()
    try:
        args = build_parser().parse_args(argv)
        code = args.run(args)
        sys.stdout.flush()  # while there is somebody to tell
        return code
    except IcarusError as error:
        return _fail(str(error), 2 if isinstance(error, _USERS_MISTAKES) else 1)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing == "icarus_benchmarks":
            return _fail("the benchmarks are not installed here; run `icarus bench` from a checkout of the sources", 2)
        if not missing or missing.startswith("icarus"):
            raise
        extra = _EXTRAS.get(missing, "engine")
        return _fail(f"this needs {missing}: in a checkout, pip install -c constraints.txt '.[{extra}]'", 2)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `icarus generate | head`
        _leave_output()
        return 1
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _leave_output()
        return _fail(f"what was to be written has no room: {error.strerror}", 1)


def _prepare_streams() -> None:
    """Output that is closed goes nowhere, as print has it; characters that its encoding lacks are escaped."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _leave_output() -> None:
    """The interpreter must not flush into it again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"icarus: error: {message}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
