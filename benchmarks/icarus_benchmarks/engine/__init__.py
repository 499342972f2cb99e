"""icarus bench engine: prefill, decode and the paired step, of an engine in this process."""
