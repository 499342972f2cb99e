"""`icarus serve`: one process of a deployment."""

import argparse
import asyncio
import importlib
import os
import signal
import threading
import time

from icarus.cli.compute_threads import set_up_threads
from icarus.cli.flags import read_config
from icarus.rpc.logs import configure_logging
from icarus.rpc.tracing import configure_tracing

_STOP_SECONDS = 20.0


def run(args: argparse.Namespace) -> int:
    config = read_config(args)
    for which in (signal.SIGTERM, signal.SIGINT):
        signal.signal(which, _end_at_once)
    if args.role != "gateway":  # which computes nothing
        set_up_threads(config.engine)
    configure_logging(args.log_level)
    configure_tracing(args.role, "" if args.role == "gateway" else config.worker.id, os.environ)
    if args.stop_with_stdin:
        threading.Thread(target=_stop_with_stdin, name="stdin-watch", daemon=True).start()
    service = importlib.import_module(f"icarus_{args.role}.main")
    asyncio.run(service.serve(config))
    return 0


def _end_at_once(which: int, _: object) -> None:
    """Before the service serves, which then waits for signals itself: nothing is held yet. The first process of a
    container would ignore SIGTERM otherwise, and load its model to the end."""
    os._exit(128 + which)


def _stop_with_stdin() -> None:
    """Ends this process when the other end of its standard input closes, so that it cannot outlive its parent.

    Reads the descriptor itself: a thread that waits in `sys.stdin` would upset the interpreter's exit.
    """
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_STOP_SECONDS)
    os._exit(1)
