"""One worker process: what prefill and decode share. `v1` holds its protocol."""
