"""What is an address: HOST:PORT, an IPv6 host in brackets, and for who calls it also a URI as gRPC takes them."""

import re

CALLED = "HOST:PORT, such as 127.0.0.1:7080 or [::1]:7080, its port 1 to 65535, or a URI such as dns:///HOST:PORT"
"""What `can_be_called` asks for, in words."""
LISTENED = "HOST:PORT, such as 127.0.0.1:7080 or [::1]:7080, its port 0 to 65535"
"""What `can_be_listened_on` asks for."""
_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "vsock:", "xds:")
_HOST_AND_PORT = re.compile(r"(\[[\w:.%-]+\]|[^\s:/\[\]]+):([0-9]{1,5})")
_MAX_PORT = 65535


def can_be_called(address: str) -> bool:
    """HOST:PORT or a URI."""
    return address.startswith(_SCHEMES) or _has_port_from(1, address)


def can_be_listened_on(address: str) -> bool:
    """HOST:PORT, where port 0 stands for any that is free."""
    return _has_port_from(0, address)


def _has_port_from(least: int, address: str) -> bool:
    match = _HOST_AND_PORT.fullmatch(address)
    return match is not None and least <= int(match[2]) <= _MAX_PORT
