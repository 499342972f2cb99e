"""Sizes that launches of Triton's kernels work out on the host."""

import torch


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def next_power_of_2(n: int, least: int = 1) -> int:
    """The first one that is neither below n nor below `least`, itself a power of two."""
    return max(1 << (n - 1).bit_length() if n > 0 else 1, least)


def count_processors(device: torch.device) -> int:
    """Streaming multiprocessors; 1 on a CPU, where Triton's interpreter runs one program after the other."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
