"""One block-major KV pool: names, ownership and the tensors."""
