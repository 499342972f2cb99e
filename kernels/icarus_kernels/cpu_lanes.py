"""Vectors of sixteen float32 for the CPU's kernels: their arithmetic is SIMD by construction, on any processor.

Numba turns some loops into SIMD and some not; attention took twice as long where it was left to that.
"""

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import models, overload, register_model

from icarus_kernels.cpu_kernel import compiled, inner, narrow_values, widen_values

WIDTH = 16


class _LanesType(types.Type):
    def __init__(self) -> None:
        super().__init__("lanes16")


_LANES = _LanesType()
_VECTOR = ir.VectorType(ir.FloatType(), WIDTH)
_INTEGERS = ir.VectorType(ir.IntType(32), WIDTH)


@register_model(_LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Any):
        super().__init__(manager, fe_type, _VECTOR)


def splat_value(builder: Any, value: Any) -> Any:
    """LLVM code for sixteen times a number of any type."""
    nothing = ir.Constant(ir.VectorType(value.type, WIDTH), ir.Undefined)
    first = builder.insert_element(nothing, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(_INTEGERS, None))


def lane_pointer(builder: Any, pointer: Any, index: Any, width: int = WIDTH) -> Any:
    """Of `width` stored numbers from `pointer[index]` on, aligned as one of them."""
    start = builder.gep(pointer, [index])
    return builder.bitcast(start, ir.VectorType(start.type.pointee, width).as_pointer()), _alignment(start)


def _alignment(pointer: Any) -> int:
    return 4 if isinstance(pointer.type.pointee, ir.FloatType) else 2


def prefetch_line(builder: Any, pointer: Any) -> None:
    """LLVM code that asks for the cache line at a pointer."""
    byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    # For a read, into the second-level cache, of data.
    builder.call(function, [builder.bitcast(pointer, byte), *(ir.Constant(number, value) for value in (0, 2, 1))])


@compiled
def prefetch(typingctx: Any, pointer: Any, index: Any) -> Any:
    """Asks for the cache line of `pointer[index]`, which need not be there."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        prefetch_line(builder, builder.gep(arguments[0], [arguments[1]]))
        return context.get_dummy_value()

    return types.void(pointer, types.int64), generate


@compiled
def load(typingctx: Any, pointer: Any, index: Any) -> Any:
    """Sixteen numbers from `pointer[index]` on, widened."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place, align = lane_pointer(builder, *arguments)
        return widen_values(builder, builder.load(place, align=align), pointer.dtype, WIDTH)

    return _LANES(pointer, types.int64), generate


@compiled
def store(typingctx: Any, pointer: Any, index: Any, lanes: Any) -> Any:
    """Writes sixteen numbers from `pointer[index]` on, narrowed."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place, align = lane_pointer(builder, *arguments[:2])
        builder.store(narrow_values(builder, arguments[2], pointer.dtype, WIDTH), place, align=align)
        return context.get_dummy_value()

    return types.void(pointer, types.int64, _LANES), generate


@compiled
def splat(typingctx: Any, value: Any) -> Any:
    """The float32 in every lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return splat_value(builder, arguments[0])

    return _LANES(types.float32), generate


def _intrinsic(name: str, num_operands: int) -> Any:
    """An LLVM operation on each lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * num_operands)
        function = cgutils.get_or_insert_function(builder.module, kind, f"{name}.v{WIDTH}f32")
        return builder.call(function, arguments)

    return _LANES(*[_LANES] * num_operands), generate


@compiled
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c."""
    return _intrinsic("llvm.fma", 3)


def _choice(comparison: str) -> Any:
    """b where `a comparison b`, else a."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, b = arguments
        return builder.select(builder.fcmp_ordered(comparison, a, b), b, a)

    return _LANES(_LANES, _LANES), generate


@compiled
def larger(typingctx: Any, a: Any, b: Any) -> Any:
    """Of each two lanes; `a` where one is NaN."""
    return _choice("<")


@compiled
def smaller(typingctx: Any, a: Any, b: Any) -> Any:
    """Of each two lanes; `a` where one is NaN."""
    return _choice(">")


def _reduction(name: str, start: tuple[Any, ...]) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = [value.type for value in start] + [_VECTOR]
        kind = ir.FunctionType(ir.FloatType(), kinds)
        function = cgutils.get_or_insert_function(builder.module, kind, f"{name}.v{WIDTH}f32")
        return builder.call(function, [*start, *arguments], fastmath=("reassoc",))

    return types.float32(_LANES), generate


@compiled
def total(typingctx: Any, lanes: Any) -> Any:
    """The sum of the lanes, a float32."""
    return _reduction("llvm.vector.reduce.fadd", (ir.Constant(ir.FloatType(), -0.0),))


@compiled
def store_totals(typingctx: Any, pointer: Any, index: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """The sums of the lanes of four vectors, to four float32 from `pointer[index]` on. Much cheaper than four sums."""

    def halves(builder: Any, first: Any, second: Any, run: int) -> Any:
        """Adds up runs of `run` lanes: those of `first`, then those of `second`."""
        lanes = [lane for lane in range(2 * WIDTH) if lane % (2 * run) < run]
        low = builder.shuffle_vector(first, second, shuffle_mask(lanes))
        return builder.fadd(low, builder.shuffle_vector(first, second, shuffle_mask([lane + run for lane in lanes])))

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, _, a, b, c, d = arguments
        sums = halves(builder, halves(builder, a, b, 8), halves(builder, c, d, 8), 4)
        for run in (2, 1):
            turned = builder.shuffle_vector(sums, sums, shuffle_mask([lane ^ run for lane in range(WIDTH)]))
            sums = builder.fadd(sums, turned)
        place, align = lane_pointer(builder, *arguments[:2], width=4)
        builder.store(builder.shuffle_vector(sums, sums, shuffle_mask([0, 4, 8, 12])), place, align=align)
        return context.get_dummy_value()

    return types.void(pointer, types.int64, *[_LANES] * 4), generate


def shuffle_mask(lanes: list[int]) -> Any:
    """For LLVM's shufflevector: which of both vectors' lanes each lane becomes."""
    return ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)


@compiled
def largest(typingctx: Any, lanes: Any) -> Any:
    """The largest lane, a float32."""
    return _reduction("llvm.vector.reduce.fmax", ())


def _operator(operation: Callable[..., Any], instruction: str) -> None:
    @compiled
    def lanewise(typingctx: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, instruction)(*arguments)

        return _LANES(_LANES, _LANES), generate

    @overload(operation)
    def overloaded(a, b):
        if a is _LANES and b is _LANES:
            return lambda a, b: lanewise(a, b)  # noqa: PLW0108  # numba wants a Python function
        return None


_operator(operator.add, "fadd")
_operator(operator.sub, "fsub")
_operator(operator.mul, "fmul")
_operator(operator.truediv, "fdiv")


@compiled
def _power_of_two(typingctx: Any, exponent: Any) -> Any:
    """2 to each lane, which is a whole number in -126..127, or NaN: then anything."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        # At 1.5 * 2^23 a float's last bits are a whole number. Unlike fptosi, that is defined for NaN.
        shifted = builder.fadd(arguments[0], ir.Constant(_VECTOR, [12582912.0] * WIDTH))
        biased = builder.add(builder.bitcast(shifted, _INTEGERS), ir.Constant(_INTEGERS, [127] * WIDTH))
        return builder.bitcast(builder.shl(biased, ir.Constant(_INTEGERS, [23] * WIDTH)), _VECTOR)

    return _LANES(_LANES), generate


@compiled
def _round(typingctx: Any, lanes: Any) -> Any:
    return _intrinsic("llvm.rint", 1)


@inner
def exp(x: Any) -> Any:
    """e to each lane, to two units in the last place; below -87 it is about 1e-38 and stays so, above 88 likewise. NaN
    stays NaN."""
    x = smaller(larger(x, splat(types.float32(-87.0))), splat(types.float32(88.0)))
    whole = _round(x * splat(types.float32(1.4426950408889634)))
    # log(2) in two parts: the first times a whole number is exact.
    rest = fma(whole, splat(types.float32(-0.693359375)), x)
    rest = fma(whole, splat(types.float32(2.12194440e-4)), rest)
    # Cephes' expf polynomial
    y = splat(types.float32(1.9875691500e-4))
    y = fma(y, rest, splat(types.float32(1.3981999507e-3)))
    y = fma(y, rest, splat(types.float32(8.3334519073e-3)))
    y = fma(y, rest, splat(types.float32(4.1665795894e-2)))
    y = fma(y, rest, splat(types.float32(1.6666665459e-1)))
    y = fma(y, rest, splat(types.float32(5.0000001201e-1)))
    y = fma(y * rest, rest, rest + splat(types.float32(1.0)))
    return y * _power_of_two(whole)


@inner
def exp2(x: Any) -> Any:
    """2 to each lane, to two units in the last place; for lanes up to 127, and below -126 it is about 1e-38. NaN
    stays NaN."""
    x = larger(x, splat(types.float32(-126.0)))
    whole = _round(x)
    rest = x - whole
    # Cephes' exp2f polynomial
    y = splat(types.float32(1.535336188319500e-4))
    y = fma(y, rest, splat(types.float32(1.339887440266574e-3)))
    y = fma(y, rest, splat(types.float32(9.618437357674640e-3)))
    y = fma(y, rest, splat(types.float32(5.550332471162809e-2)))
    y = fma(y, rest, splat(types.float32(2.402264791363012e-1)))
    y = fma(y, rest, splat(types.float32(6.931472028550421e-1)))
    y = fma(y, rest, splat(types.float32(1.0)))
    return y * _power_of_two(whole)


@compiled
def _exponent(typingctx: Any, lanes: Any) -> Any:
    """Of each lane, which is positive and normal: the whole number e with lane / 2^e in [sqrt(1/2), sqrt(2))."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.sitofp(_exponent_bits(builder, arguments[0]), _VECTOR)

    return _LANES(_LANES), generate


@compiled
def _mantissa(typingctx: Any, lanes: Any) -> Any:
    """Each lane over 2 to its `_exponent`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        exponent = builder.shl(_exponent_bits(builder, arguments[0]), ir.Constant(_INTEGERS, [23] * WIDTH))
        return builder.bitcast(builder.sub(builder.bitcast(arguments[0], _INTEGERS), exponent), _VECTOR)

    return _LANES(_LANES), generate


def _exponent_bits(builder: Any, lanes: Any) -> Any:
    root_of_half = ir.Constant(_INTEGERS, [0x3F3504F3] * WIDTH)
    offset = builder.sub(builder.bitcast(lanes, _INTEGERS), root_of_half)
    return builder.ashr(offset, ir.Constant(_INTEGERS, [23] * WIDTH))


@inner
def log(x: Any) -> Any:
    """The natural logarithm of each lane, which is positive and normal, to two units in the last place."""
    exponent, x = _exponent(x), _mantissa(x) - splat(types.float32(1.0))
    square = x * x
    # Cephes' logf polynomial
    y = splat(types.float32(7.0376836292e-2))
    y = fma(y, x, splat(types.float32(-1.1514610310e-1)))
    y = fma(y, x, splat(types.float32(1.1676998740e-1)))
    y = fma(y, x, splat(types.float32(-1.2420140846e-1)))
    y = fma(y, x, splat(types.float32(1.4249322787e-1)))
    y = fma(y, x, splat(types.float32(-1.6668057665e-1)))
    y = fma(y, x, splat(types.float32(2.0000714765e-1)))
    y = fma(y, x, splat(types.float32(-2.4999993993e-1)))
    y = fma(y, x, splat(types.float32(3.3333331174e-1)))
    y = fma(exponent, splat(types.float32(-2.12194440e-4)), y * x * square)
    y = fma(square, splat(types.float32(-0.5)), y)
    # log(2) in two parts: the first times a whole number is exact.
    return fma(exponent, splat(types.float32(0.693359375)), x + y)
