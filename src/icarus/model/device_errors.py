"""What an error of torch's says of the device."""

import torch

_CUDA_ERROR_MEMORY_ALLOCATION = 2


def is_out_of_memory(error: Exception) -> bool:
    """Whether the device had no room, and can go on: for a tensor, or for what CUDA (a graph, for one) and cuBLAS
    allocate beside torch."""
    if isinstance(error, torch.AcceleratorError):
        return getattr(error, "error_code", None) == _CUDA_ERROR_MEMORY_ALLOCATION
    return isinstance(error, torch.OutOfMemoryError) or "CUBLAS_STATUS_ALLOC_FAILED" in str(error)


def ends_the_device(error: Exception) -> bool:
    """Whether what comes later in this process fails as well. A kernel that could not be loaded counts: Triton does not
    try again."""
    if isinstance(error, torch.AcceleratorError):
        return not is_out_of_memory(error)
    return isinstance(error, RuntimeError) and str(error).startswith("Triton Error [CUDA]")
