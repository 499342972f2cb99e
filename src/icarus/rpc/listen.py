"""Whether an address can be listened on: `host:port`, an IPv6 host in brackets, port 0 for any that is free."""

import socket

from icarus.errors import ConfigError


def free_port(address: str, setting: str) -> int:
    """The address's port, or a free one in place of port 0, after it was bound for a moment. `setting` is where the
    address was set.

    The system says what is wrong; gRPC says only that something is, and writes to stderr by itself. Raises ConfigError.
    """
    host, _, port = address.rpartition(":")
    try:
        if not (port.isdecimal() and int(port) < 1 << 16):  # the system would take the rest of a division, or a name
            raise OverflowError(f"its port is {port!r}, no number from 0 to 65535")
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, _, _, name = found[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(name)
            return probe.getsockname()[1]
    except (OSError, OverflowError, UnicodeError) as error:
        raise cannot_listen(address, setting, error) from None


def cannot_listen(address: str, setting: str, error: Exception) -> ConfigError:
    reason = error.strerror if isinstance(error, OSError) else error
    return ConfigError(
        f"{setting}: cannot listen on {address}: {reason}; choose a free port of this machine, or port 0 for any"
    )
