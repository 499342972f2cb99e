"""icarus bench transfer: reads of blocks between two processes, against bare NIXL."""
