"""Whether an address can be listened on: `host:port`, an IPv6 host in brackets, port 0 for any that is free."""

import contextlib
import socket

from icarus.errors import ConfigError


def hold_port(address: str, setting: str) -> socket.socket:
    """Bound to the address, or to a free port in place of port 0, and not listening. `setting` is where the address was
    set.

    While it is open, Linux gives the port to nobody who asks for any, to listen or to connect, and to a server that
    asks for it by number if it sets SO_REUSEADDR, as servers of gRPC, Python, Go and libuv do. Raises ConfigError with
    the system's reason: gRPC says only that something is wrong, and writes to stderr by itself.
    """
    host, _, port = address.rpartition(":")
    try:
        if not (port.isdecimal() and int(port) < 1 << 16):  # the system would take the rest of a division, or a name
            raise OverflowError(f"its port is {port!r}, no number from 0 to 65535")
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, _, _, name = found[0]
        with contextlib.ExitStack() as unless_bound:
            held = unless_bound.enter_context(socket.socket(family, kind))
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(name)
            unless_bound.pop_all()
        return held
    except (OSError, OverflowError, UnicodeError) as error:
        raise cannot_listen(address, setting, error) from None


def cannot_listen(address: str, setting: str, error: Exception) -> ConfigError:
    reason = error.strerror if isinstance(error, OSError) else error
    return ConfigError(
        f"{setting}: cannot listen on {address}: {reason}; choose a free port of this machine, or port 0 for any"
    )
