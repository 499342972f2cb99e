"""KV store on the CPU."""

from numba import int64
from torch import Tensor

from icarus_kernels.cpu_kernel import CPUKernel, arguments_of, at_address, my_share, threads_for

(
    _PAGES, _SLOTS, _KEYS, _VALUES,
    _ROWS, _HEADS, _HEAD_DIM, _BLOCK_SIZE,
    _BLOCK_STRIDE, _KV_STRIDE, _TOKEN_STRIDE, _HEAD_STRIDE,
    _KEY_ROW_STRIDE, _KEY_HEAD_STRIDE, _VALUE_ROW_STRIDE, _VALUE_HEAD_STRIDE,
) = range(16)  # fmt: skip
"""Where the kernel finds what in its arguments: the order of `store_kv_cpu`."""


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
    pages, slots = at_address(a[_PAGES], p), at_address(a[_SLOTS], int64)
    keys, values = at_address(a[_KEYS], p), at_address(a[_VALUES], p)
    rows, heads, head_dim, block_size = a[_ROWS], a[_HEADS], a[_HEAD_DIM], a[_BLOCK_SIZE]
    block_stride, kv_stride = a[_BLOCK_STRIDE], a[_KV_STRIDE]
    token_stride, head_stride = a[_TOKEN_STRIDE], a[_HEAD_STRIDE]
    begin, end = my_share(rows)
    for row in range(begin, end):
        if slots[row] < 0:
            continue
        token = slots[row] // block_size * block_stride + slots[row] % block_size * token_stride
        for head in range(heads):
            to = token + head * head_stride
            key = row * a[_KEY_ROW_STRIDE] + head * a[_KEY_HEAD_STRIDE]
            value = row * a[_VALUE_ROW_STRIDE] + head * a[_VALUE_HEAD_STRIDE]
            for d in range(head_dim):
                pages[to + d] = keys[key + d]
                pages[to + kv_stride + d] = values[value + d]


_STORE = CPUKernel(_store)
