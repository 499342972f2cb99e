"""Moves blocks between workers: the transport interface, NIXL, the transfer thread."""
