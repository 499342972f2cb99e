"""Reads the answer of a turn that ends with it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from icarus.cli.ctrl_c import on_ctrl_c
from icarus.client import TurnStream
from icarus.errors import IcarusError, OverloadedError, UnavailableError


@contextmanager
def reading(stream: TurnStream, of_session: bool) -> Iterator[None]:
    """The body reads the stream; Ctrl-C in it, and leaving it, end the turn.

    Where the stream gave up, UnavailableError says what became of the turn: there is no turn_id to ask again with here.
    """
    try:
        with stream, on_ctrl_c(stream.cancel):
            yield
    except (OverloadedError, UnavailableError):
        if stream.lost is None:
            raise
        raise UnavailableError(f"{stream.lost}; {_outcome(stream, of_session)}") from None


def write_answer(stream: TurnStream) -> None:
    """To standard output as it comes, a line of its own however it ends."""
    try:
        for delta in stream:
            sys.stdout.write(delta.text)
            sys.stdout.flush()
    except IcarusError:
        if stream.text:
            _end_line()
        raise
    _end_line()


def _end_line() -> None:
    sys.stdout.write("\n")
    sys.stdout.flush()


def _outcome(stream: TurnStream, of_session: bool) -> str:
    if stream.finish_reason is not None:
        where = ", and is part of the session" if of_session else "; ask again for its answer"
        return f"the turn had finished all the same{where}"
    look = "; look at the session: the turn is part of it if it had finished before" if of_session else "; ask again"
    return f"the turn was given up{look}"
