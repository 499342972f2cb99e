"""Kernels for the CPU: compiled by Numba, run by the threads that torch already has.

Numba could run threads of its own, but two OpenMP libraries side by side fight for the cores: each keeps its threads
spinning after its work while the other's need the core. So a kernel is a C function that torch's OpenMP library runs
as a parallel region, and Numba compiles it.
"""

import ctypes
import hashlib
import struct
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import llvmlite.binding
import torch
from llvmlite import ir
from numba import cfunc, extending, njit, types

_STORED = {torch.float32: types.float32, torch.bfloat16: types.uint16, torch.float16: types.int16}
"""How Numba sees a tensor's numbers: it knows no 16-bit floats, so the integer types stand for them."""


@cache
def _openmp() -> Any:
    """The OpenMP library that torch is linked to."""
    library: Any = ctypes.CDLL(torch._C.__file__)
    library.GOMP_parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    library.GOMP_parallel.restype = None
    return library


def _add_symbols() -> None:
    """Lets compiled code find them, also code that comes from Numba's cache."""
    for name in ("omp_get_thread_num", "omp_get_num_threads"):
        address: Any = ctypes.cast(getattr(_openmp(), name), ctypes.c_void_p).value
        llvmlite.binding.add_symbol(f"icarus_{name}", address)  # pyright: ignore


_add_symbols()
_thread_num = types.ExternalFunction("icarus_omp_get_thread_num", types.int32())
_num_threads = types.ExternalFunction("icarus_omp_get_num_threads", types.int32())


@cache
def _digest_of_helpers() -> str:
    names = ("cpu_kernel", "cpu_lanes", "cpu_dot_tiles", "kv_tiles", "online_softmax", "attention_slots")
    sources = [Path(__file__).with_name(f"{name}.py") for name in names]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:8]


class CPUKernel:
    """A kernel for each dtype, compiled when it is first asked for and kept in Numba's cache where one can be written.

    `body` takes a pointer of the dtype, which only carries the type: it points to the int64 arguments (`arguments_of`).
    `dtypes` are those that it is for.
    """

    _all: ClassVar[list["CPUKernel"]] = []

    def __init__(self, body: Callable[[Any], None], dtypes: Collection[torch.dtype] = tuple(_STORED)):
        # Numba's cache is by name, and sees changes in the body's file alone: not in those of the functions it calls.
        body.__qualname__ = f"{body.__qualname__}_{_digest_of_helpers()}"
        self._body = body
        self._dtypes = dtypes
        self._functions: dict[torch.dtype, tuple[int, Callable[[Any], None]]] = {}
        self._kept: list[Any] = []
        self._all.append(self)

    @classmethod
    def compile_all(cls, dtype: torch.dtype) -> None:
        """Some seconds where Numba's cache has nothing yet."""
        for kernel in cls._all:
            # What is for float32 alone (the sampler's) is needed whatever the model's dtype.
            wanted = dtype if dtype in kernel._dtypes else torch.float32
            if wanted in kernel._dtypes:
                kernel._compile(wanted)

    def _compile(self, dtype: torch.dtype) -> tuple[int, Callable[[Any], None]]:
        """Its address, and how one thread calls it."""
        if dtype not in self._functions:
            signature = types.void(types.CPointer(_STORED[dtype]))
            try:
                function: Any = cfunc(signature, cache=True, error_model="numpy")(self._body)
            except RuntimeError:  # nowhere to write a cache
                function = cfunc(signature, error_model="numpy")(self._body)
            self._kept.append(function)
            self._functions[dtype] = function.address, ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function.address)
        return self._functions[dtype]

    def __call__(self, dtype: torch.dtype, num_threads: int, *arguments: int) -> None:
        """Runs it on so many threads, which share the work."""
        block: Any = struct.pack(f"{len(arguments)}q", *arguments)  # a third of what a ctypes array takes
        address, call = self._functions.get(dtype) or self._compile(dtype)
        if num_threads == 1:
            call(block)
        else:
            _openmp().GOMP_parallel(address, block, num_threads, 0)


def compile_cpu_kernels(dtype: torch.dtype) -> None:
    """Compiles every kernel for a dtype now rather than in the first step."""
    CPUKernel.compile_all(dtype)


_LITTLE_WORK = 1 << 14
"""Numbers: with fewer, waking a second thread costs more than it saves."""


def threads_for(num_numbers: int) -> int:
    """How many threads an operation on so many numbers is worth."""
    return 1 if num_numbers < _LITTLE_WORK else torch.get_num_threads()


@cache
def float_argument(value: float) -> int:
    """A float as an argument; `as_float` gives it back."""
    return struct.unpack("<q", struct.pack("<d", value))[0]


# -- for use in kernels: compiled, not called ----------------------------------------------------------------------

compiled: Any = extending.intrinsic
"""For functions that write LLVM code."""
inner: Any = njit(error_model="numpy")
"""For functions that kernels call. Nobody could catch Python's ZeroDivisionError there."""


@compiled
def _cast_pointer(typingctx: Any, source: Any, like: Any) -> Any:
    target = types.CPointer(like.dtype) if isinstance(like, types.NumberClass) else like

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        cast = builder.inttoptr if isinstance(source, types.Integer) else builder.bitcast
        return cast(arguments[0], context.get_value_type(target))

    return target(source, like), generate


@inner
def at_address(address: int, like: Any) -> Any:
    """A pointer to `address`; of the type of the pointer `like`, or to numbers of the Numba type `like`."""
    return _cast_pointer(address, like)


@inner
def arguments_of(pointer: Any) -> Any:
    """A kernel's arguments: a pointer to int64."""
    return _cast_pointer(pointer, types.int64)


@compiled
def as_float(typingctx: Any, argument: Any) -> Any:
    """What `float_argument` made an integer of, in float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        double = builder.bitcast(arguments[0], context.get_value_type(types.float64))
        return builder.fptrunc(double, context.get_value_type(types.float32))

    return types.float32(types.int64), generate


@compiled
def widen(typingctx: Any, stored: Any) -> Any:
    """A stored number as float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return widen_values(builder, arguments[0], stored)

    return types.float32(stored), generate


@compiled
def narrow(typingctx: Any, value: Any, like: Any) -> Any:
    """A float32 as the number that the pointer `like` points to."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return narrow_values(builder, arguments[0], like.dtype)

    return like.dtype(types.float32, like), generate


def widen_values(builder: Any, value: Any, stored: Any, width: int = 1) -> Any:
    """LLVM code that makes float32 of a stored number, or of a vector of `width`."""
    if stored == types.float32:
        return value
    if stored == types.int16:
        return builder.fpext(builder.bitcast(value, _wide(ir.HalfType(), width)), _wide(ir.FloatType(), width))
    words = builder.zext(value, _wide(ir.IntType(32), width))
    return builder.bitcast(builder.shl(words, _constant(32, 16, width)), _wide(ir.FloatType(), width))


def narrow_values(builder: Any, value: Any, stored: Any, width: int = 1) -> Any:
    """The reverse of `widen_values`. Rounds to the nearest, ties to even; NaN stays NaN."""
    if stored == types.float32:
        return value
    if stored == types.int16:
        return builder.bitcast(builder.fptrunc(value, _wide(ir.HalfType(), width)), _wide(ir.IntType(16), width))
    bits = builder.bitcast(value, _wide(ir.IntType(32), width))
    odd = builder.and_(builder.lshr(bits, _constant(32, 16, width)), _constant(32, 1, width))
    rounded = builder.add(builder.add(bits, _constant(32, 0x7FFF, width)), odd)
    magnitude = builder.and_(bits, _constant(32, 0x7FFFFFFF, width))
    is_nan = builder.icmp_unsigned(">", magnitude, _constant(32, 0x7F800000, width))
    chosen = builder.select(is_nan, _constant(32, 0x7FC00000, width), rounded)
    return builder.trunc(builder.lshr(chosen, _constant(32, 16, width)), _wide(ir.IntType(16), width))


def _wide(kind: Any, width: int) -> Any:
    return kind if width == 1 else ir.VectorType(kind, width)


def _constant(bits: int, value: int, width: int) -> Any:
    kind = ir.IntType(bits)
    return ir.Constant(kind, value) if width == 1 else ir.Constant(ir.VectorType(kind, width), [value] * width)


@inner
def thread_number() -> int:
    return _thread_num()


@inner
def total_threads() -> int:
    return _num_threads()


@inner
def my_share(count: int) -> tuple[int, int]:
    """The calling thread's part [start, end) of `count` things."""
    thread, threads = _thread_num(), _num_threads()
    return count * thread // threads, count * (thread + 1) // threads
