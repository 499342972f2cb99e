"""Addresses for servers that start later, on this machine."""

import socket

from icarus.rpc.listen import hold_port

_held: list[socket.socket] = []


def free_address() -> str:
    """Nobody else is given it until the tests end."""
    _held.append(hold_port("127.0.0.1:0", "a test"))
    return "{}:{}".format(*_held[-1].getsockname())
