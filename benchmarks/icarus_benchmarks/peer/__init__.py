"""icarus bench peer: the same work for Icarus and for vLLM on the same machine."""
