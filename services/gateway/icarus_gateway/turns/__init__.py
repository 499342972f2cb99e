"""One turn from its request to its end: reserve, prefill, decode, and again elsewhere if a worker dies."""
