"""Moves blocks between workers: the transport interface, NIXL, in-process."""
