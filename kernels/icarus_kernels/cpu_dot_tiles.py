"""Matrix products of bfloat16 for the CPU's kernels, by the instruction that multiplies pairs of them (AVX512_BF16)."""

from functools import cache
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils

from icarus_kernels.cpu_kernel import compiled
from icarus_kernels.cpu_lanes import WIDTH, lane_pointer, splat_value

ROWS, COLUMNS = 6, 64
"""Of a tile of a product: 24 vectors of sums, a line of the right side and a pair of the left fill the registers."""

_SUMS = ir.VectorType(ir.FloatType(), WIDTH)


class _BFloatType(ir.HalfType):
    """llvmlite knows every other float."""

    intrinsic_name = "bf16"

    def __str__(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return "bfloat"


_BFloatType._create_instance()
_NUMBERS = ir.VectorType(_BFloatType(), 2 * WIDTH)


@cache
def has_dot_tiles() -> bool:
    """Whether this processor has the instruction. Not used with AMX, which torch's own products have: the two have not
    been compared there."""
    features: Any = llvmlite.binding.get_host_cpu_features()
    return bool(features.get("avx512bf16")) and not features.get("amx-bf16")


@compiled
def multiply_tile(
    typingctx: Any,
    product: Any,
    to: Any,
    stride: Any,
    left: Any,
    at: Any,
    left_stride: Any,
    right: Any,
    num_pairs: Any,
    adds: Any,
) -> Any:
    """product [ROWS, COLUMNS] = left [ROWS, 2 num_pairs] right [2 num_pairs, COLUMNS]; `adds`: added to what is there.

    product     pointer to float32, from number `to` on, `stride` numbers a row
    left        pointer to bfloat16, from number `at` on, `left_stride` numbers a row; both are even
    right       pointer to bfloat16, [num_pairs, COLUMNS, 2]: the two that one instruction multiplies lie together
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        product, to, stride, left, at, left_stride, right, num_pairs, adds = arguments
        lines = [builder.add(to, builder.mul(stride, _index(row))) for row in range(ROWS)]
        places = [[_vector_at(builder, product, line, column) for column in _columns()] for line in lines]
        sums = [[cgutils.alloca_once(builder, _SUMS) for _ in _columns()] for _ in range(ROWS)]
        with builder.if_else(builder.trunc(adds, ir.IntType(1))) as (adding, fresh):
            for branch, first in ((adding, lambda place: builder.load(place, align=4)), (fresh, lambda _: _SUMS(None))):
                with branch:
                    for row, held in zip(places, sums, strict=True):
                        for place, total in zip(row, held, strict=True):
                            builder.store(first(place), total)
        left_pairs = builder.bitcast(builder.gep(left, [at]), ir.IntType(32).as_pointer())
        left_step = builder.lshr(left_stride, _index(1))
        right_pairs = builder.bitcast(right, ir.IntType(32).as_pointer())
        with cgutils.for_range(builder, num_pairs) as loop:
            line = builder.mul(loop.index, _index(COLUMNS))
            lanes = [builder.load(_vector_at(builder, right_pairs, line, column), align=4) for column in _columns()]
            for row in range(ROWS):
                place = builder.gep(left_pairs, [builder.add(builder.mul(left_step, _index(row)), loop.index)])
                pair = splat_value(builder, builder.load(place, align=4))
                for total, lane in zip(sums[row], lanes, strict=True):
                    builder.store(_dot(builder, builder.load(total), pair, lane), total)
        for row, held in zip(places, sums, strict=True):
            for place, total in zip(row, held, strict=True):
                builder.store(builder.load(total), place, align=4)
        return context.get_dummy_value()

    int64, bfloats = types.int64, types.CPointer(types.uint16)
    product_kind = types.CPointer(types.float32)
    return types.void(product_kind, int64, int64, bfloats, int64, int64, bfloats, int64, int64), generate


@compiled
def store_rounded(typingctx: Any, pointer: Any, index: Any, lanes: Any) -> Any:
    """As `store` to bfloat16, by one instruction instead of ten; what is too small for a normal number becomes 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, index, lanes = arguments
        narrow = builder.fptrunc(lanes, ir.VectorType(_BFloatType(), WIDTH))
        words = ir.VectorType(ir.IntType(16), WIDTH)
        builder.store(builder.bitcast(narrow, words), _vector_at(builder, pointer, index, 0), align=2)
        return context.get_dummy_value()

    return types.void(types.CPointer(types.uint16), types.int64, lanes), generate


def _columns() -> range:
    return range(0, COLUMNS, WIDTH)


def _index(value: int) -> Any:
    return ir.Constant(ir.IntType(64), value)


def _vector_at(builder: Any, pointer: Any, start: Any, offset: int) -> Any:
    place, _ = lane_pointer(builder, pointer, builder.add(start, _index(offset)))
    return place


def _dot(builder: Any, total: Any, left: Any, right: Any) -> Any:
    """Adds the products of both numbers of each pair."""
    kind = ir.FunctionType(_SUMS, [_SUMS, _NUMBERS, _NUMBERS])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512bf16.dpbf16ps.512")
    return builder.call(function, [total, builder.bitcast(left, _NUMBERS), builder.bitcast(right, _NUMBERS)])
