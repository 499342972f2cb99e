"""KV store on the CPU."""

from numba import int64
from torch import Tensor

from icarus_kernels.cpu_kernel import CPUKernel, arguments_of, at_address, my_share, threads_for


def store_kv_cpu(pages: Tensor, slots: Tensor, keys: Tensor, values: Tensor) -> None:
    """As `store_kv`."""
    rows, heads, head_dim = keys.shape
    _STORE(
        pages.dtype,
        threads_for(2 * keys.numel()),
        *(tensor.data_ptr() for tensor in (pages, slots, keys, values)),
        *(rows, heads, head_dim, pages.shape[2], *pages.stride()[:4]),
        *(*keys.stride()[:2], *values.stride()[:2]),
    )


def _store(p):
    a = arguments_of(p)
    pages, slots, keys, values = at_address(a[0], p), at_address(a[1], int64), at_address(a[2], p), at_address(a[3], p)
    rows, heads, head_dim, block_size = a[4], a[5], a[6], a[7]
    block_stride, value_offset, token_stride, head_stride = a[8], a[9], a[10], a[11]
    begin, end = my_share(rows)
    for row in range(begin, end):
        if slots[row] < 0:
            continue
        token = slots[row] // block_size * block_stride + slots[row] % block_size * token_stride
        for head in range(heads):
            to = token + head * head_stride
            key, value = row * a[12] + head * a[13], row * a[14] + head * a[15]
            for d in range(head_dim):
                pages[to + d] = keys[key + d]
                pages[to + value_offset + d] = values[value + d]


_STORE = CPUKernel(_store)
