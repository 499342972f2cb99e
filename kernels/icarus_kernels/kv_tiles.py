"""Tiles of keys and of values out of the pages, laid out as the right side of `multiply_tile`."""

from icarus_kernels.cpu_dot_tiles import COLUMNS, interleave, transpose_pairs
from icarus_kernels.cpu_kernel import inner
from icarus_kernels.cpu_lanes import WIDTH

KEYS = COLUMNS
"""Of a tile."""


@inner
def find_lines(lines, table, key, count, block_size, block_stride, token_stride):
    """lines [KEYS]: where in the pages the keys from `key` on begin. Those behind the first `count` are the last of
    these once more: numbers that are safe to read, for weights of almost 0."""
    page, token = key // block_size, key % block_size
    for i in range(count):
        lines[i] = table[page] * block_stride + token * token_stride
        token += 1
        if token == block_size:
            page, token = page + 1, 0
    for i in range(count, KEYS):
        lines[i] = lines[count - 1]


@inner
def pack_keys(packed, to, pages, lines, offset, head_dim):
    """packed, from number `to` on: [pairs of dimensions, KEYS, 2], of the head at `offset`."""
    for d in range(0, head_dim, 2 * WIDTH):
        for key in range(0, KEYS, WIDTH):
            transpose_pairs(packed, to + d * KEYS + 2 * key, pages, lines, key, offset + d)


@inner
def pack_values(packed, to, pages, lines, offset, head_dim):
    """packed, from number `to` on: [dimensions / COLUMNS, pairs of keys, COLUMNS, 2], of the head at `offset`."""
    for d in range(0, head_dim, COLUMNS):
        for key in range(0, KEYS, 2):
            at = offset + d
            interleave(packed, to + d * KEYS + key * COLUMNS, pages, lines[key] + at, lines[key + 1] + at)
