"""Matrix products of bfloat16 for the CPU's kernels, by the instruction that multiplies pairs of them (AVX512_BF16)."""

import itertools
from collections.abc import Callable
from functools import cache
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils

from icarus_kernels.cpu_kernel import compiled, widen_values
from icarus_kernels.cpu_lanes import WIDTH, lane_pointer, prefetch_line, shuffle_mask, splat_value

ROWS, COLUMNS = 6, 64
"""Of a tile of a product: 24 vectors of sums, a line of the right side and a pair of the left fill the registers."""
_CACHE_LINE = 32
"""bfloat16 in it."""

_SUMS = ir.VectorType(ir.FloatType(), WIDTH)
_PAIRS = ir.VectorType(ir.IntType(32), WIDTH)


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
        _multiply(builder, arguments, lambda pair: None)
        return context.get_dummy_value()

    return types.void(*_FACTORS), generate


@compiled
def multiply_tile_and_fetch(
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
    source: Any,
    lines: Any,
    offset: Any,
) -> Any:
    """As `multiply_tile`. On the way it asks for what is read soon: memory and arithmetic work at the same time.

    That is, of each of the COLUMNS lines of `source` that begin at number lines[i] + `offset`, 2 num_pairs numbers;
    num_pairs is a multiple of COLUMNS / 2.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        *factors, source, lines, offset = arguments

        def fetch(pair: Any) -> None:
            """With each pair of factors, COLUMNS numbers of two lines."""
            line = builder.mul(builder.urem(pair, _index(COLUMNS // 2)), _index(2))
            start = builder.add(offset, builder.mul(builder.udiv(pair, _index(COLUMNS // 2)), _index(COLUMNS)))
            for i in range(2):
                begin = builder.load(builder.gep(lines, [builder.add(line, _index(i))]))
                for number in range(0, COLUMNS, _CACHE_LINE):
                    at = builder.add(builder.add(begin, start), _index(number))
                    prefetch_line(builder, builder.gep(source, [at]))

        _multiply(builder, factors, fetch)
        return context.get_dummy_value()

    return types.void(*_FACTORS, _BFLOATS, types.CPointer(types.int64), types.int64), generate


_BFLOATS = types.CPointer(types.uint16)
_FACTORS = (
    *(types.CPointer(types.float32), types.int64, types.int64),
    *(_BFLOATS, types.int64, types.int64),
    *(_BFLOATS, types.int64, types.int64),
)


def _multiply(builder: Any, arguments: Any, fetch: Callable[[Any], None]) -> None:
    product, to, stride, *factors, adds = arguments
    lines = [builder.add(to, builder.mul(stride, _index(row))) for row in range(ROWS)]
    places = [[_vector_at(builder, product, line, column) for column in _columns()] for line in lines]
    sums = _sums(builder, ROWS)
    with builder.if_else(builder.trunc(adds, ir.IntType(1))) as (adding, fresh):
        for branch, first in ((adding, lambda place: builder.load(place, align=4)), (fresh, lambda _: _SUMS(None))):
            with branch:
                for row, held in zip(places, sums, strict=True):
                    for place, total in zip(row, held, strict=True):
                        builder.store(first(place), total)
    _add_products(builder, sums, *factors, fetch=fetch)
    for row, held in zip(places, sums, strict=True):
        for place, total in zip(row, held, strict=True):
            builder.store(builder.load(total), place, align=4)


def _sums(builder: Any, num_rows: int) -> list[list[Any]]:
    """Where a tile's sums are: variables, which become registers."""
    return [[cgutils.alloca_once(builder, _SUMS) for _ in _columns()] for _ in range(num_rows)]


def _add_products(
    builder: Any,
    sums: list[list[Any]],
    left: Any,
    at: Any,
    left_stride: Any,
    right: Any,
    num_pairs: Any,
    fetch: Callable[[Any], None] = lambda pair: None,
) -> None:
    left_pairs = builder.bitcast(builder.gep(left, [at]), ir.IntType(32).as_pointer())
    left_step = builder.lshr(left_stride, _index(1))
    right_pairs = builder.bitcast(right, ir.IntType(32).as_pointer())
    with cgutils.for_range(builder, num_pairs) as loop:
        fetch(loop.index)
        line = builder.mul(loop.index, _index(COLUMNS))
        lanes = [builder.load(_vector_at(builder, right_pairs, line, column), align=4) for column in _columns()]
        for row, held in enumerate(sums):
            place = builder.gep(left_pairs, [builder.add(builder.mul(left_step, _index(row)), loop.index)])
            pair = splat_value(builder, builder.load(place, align=2))
            for total, lane in zip(held, lanes, strict=True):
                builder.store(_dot(builder, builder.load(total), pair, lane), total)


@compiled
def multiply_rows(
    typingctx: Any,
    product: Any,
    to: Any,
    stride: Any,
    num_rows: Any,
    left: Any,
    at: Any,
    left_stride: Any,
    right: Any,
    num_pairs: Any,
    bias: Any,
    bias_at: Any,
    is_biased: Any,
) -> Any:
    """product [num_rows, COLUMNS] = left [num_rows, 2 num_pairs] right [2 num_pairs, COLUMNS] + bias [COLUMNS], rounded
    once, to bfloat16. For 1 to ROWS rows.

    product and bias are pointers to bfloat16, from number `to` and `bias_at` on; the others as in `multiply_tile`.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        product, to, stride, num_rows, *factors, bias, bias_at, is_biased = arguments
        sums = _sums(builder, ROWS)
        for count in range(1, ROWS + 1):
            with builder.if_then(builder.icmp_signed("==", num_rows, _index(count))):
                _multiply_rows(builder, sums[:count], product, to, stride, factors, (bias, bias_at, is_biased))
        return context.get_dummy_value()

    output, int64 = (_BFLOATS, types.int64, types.int64), types.int64
    return types.void(*output, int64, *_FACTORS[3:-1], _BFLOATS, int64, int64), generate


def _multiply_rows(
    builder: Any, sums: list[list[Any]], product: Any, to: Any, stride: Any, factors: Any, added: Any
) -> None:
    bias, bias_at, is_biased = added
    with builder.if_else(builder.trunc(is_biased, ir.IntType(1))) as (biased, plain):
        with biased:
            for index, column in enumerate(_columns()):
                words = builder.load(_vector_at(builder, bias, bias_at, column), align=2)
                for held in sums:
                    builder.store(widen_values(builder, words, types.uint16, WIDTH), held[index])
        with plain:
            for total in itertools.chain(*sums):
                builder.store(_SUMS(None), total)
    _add_products(builder, sums, *factors)
    for row, held in enumerate(sums):
        line = builder.add(to, builder.mul(stride, _index(row)))
        for total, column in zip(held, _columns(), strict=True):
            _store_rounded(builder, builder.load(total), _vector_at(builder, product, line, column))


@compiled
def transpose_pairs(typingctx: Any, packed: Any, to: Any, source: Any, lines: Any, first: Any, offset: Any) -> Any:
    """Of sixteen lines the same sixteen pairs of numbers: packed[pair, line, 2], a pair every COLUMNS pairs.

    packed      pointer to bfloat16, from number `to` on
    source      pointer to bfloat16; line i begins at number `lines[first + i] + offset`
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        packed, to, source, lines, first, offset = arguments
        rows = []
        for i in range(WIDTH):
            start = builder.load(builder.gep(lines, [builder.add(first, _index(i))]))
            place = builder.gep(source, [builder.add(start, offset)])
            rows.append(builder.load(builder.bitcast(place, _PAIRS.as_pointer()), align=2))
        for run in (1, 2, 4, 8):
            _swap_corners(builder, rows, run)
        target = builder.bitcast(builder.gep(packed, [to]), ir.IntType(32).as_pointer())
        for pair, row in enumerate(rows):
            builder.store(row, _vector_at(builder, target, _index(0), pair * COLUMNS), align=4)
        return context.get_dummy_value()

    int64 = types.int64
    return types.void(_BFLOATS, int64, _BFLOATS, types.CPointer(int64), int64, int64), generate


def _swap_corners(builder: Any, rows: list[Any], run: int) -> None:
    """A step of a matrix's transposition: within each square of 2 `run` the upper right changes places with the lower
    left."""
    lanes = range(WIDTH)
    upper = shuffle_mask([WIDTH + (lane ^ run) if lane & run else lane for lane in lanes])
    lower = shuffle_mask([WIDTH + lane if lane & run else lane ^ run for lane in lanes])
    for i in (row for row in lanes if not row & run):
        a, b = rows[i], rows[i | run]
        rows[i], rows[i | run] = builder.shuffle_vector(a, b, upper), builder.shuffle_vector(a, b, lower)


@compiled
def interleave(typingctx: Any, packed: Any, to: Any, source: Any, first: Any, second: Any) -> Any:
    """packed, from number `to` on: [COLUMNS, 2], `source` from number `first` on beside `source` from `second` on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        packed, to, source, first, second = arguments
        words = ir.VectorType(ir.IntType(16), 2 * WIDTH)

        def part(pointer: Any, at: Any, offset: int) -> Any:
            return builder.bitcast(builder.gep(pointer, [builder.add(at, _index(offset))]), words.as_pointer())

        for column in range(0, COLUMNS, 2 * WIDTH):
            a, b = (builder.load(part(source, at, column), align=2) for at in (first, second))
            for half in range(2):
                lanes = range(half * WIDTH, (half + 1) * WIDTH)
                mask = shuffle_mask([at for lane in lanes for at in (lane, 2 * WIDTH + lane)])
                place = part(packed, to, 2 * (column + half * WIDTH))
                builder.store(builder.shuffle_vector(a, b, mask), place, align=2)
        return context.get_dummy_value()

    return types.void(_BFLOATS, types.int64, _BFLOATS, types.int64, types.int64), generate


@compiled
def store_rounded(typingctx: Any, pointer: Any, index: Any, lanes: Any) -> Any:
    """As `store` to bfloat16, by one instruction instead of ten; what is too small for a normal number becomes 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, index, lanes = arguments
        _store_rounded(builder, lanes, _vector_at(builder, pointer, index, 0))
        return context.get_dummy_value()

    return types.void(_BFLOATS, types.int64, lanes), generate


def _store_rounded(builder: Any, lanes: Any, place: Any) -> None:
    narrow = builder.fptrunc(lanes, ir.VectorType(_BFloatType(), WIDTH))
    builder.store(builder.bitcast(narrow, ir.VectorType(ir.IntType(16), WIDTH)), place, align=2)


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
