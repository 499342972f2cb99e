"""Triton's kernels, by its interpreter on the CPU (tests/conftest.py) or as they are on a GPU (`make test-gpu`)."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need Triton, which has wheels for Linux alone")

from icarus_kernels.kv_store_triton import store_kv_triton
from icarus_kernels.paged_attention_triton import paged_attention_triton
from icarus_kernels.segmented_lora_triton import add_segmented_lora_triton
from triton import knobs
from triton.language import bfloat16, float32
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from icarus.model import layers


@pytest.fixture(scope="session")
def device() -> torch.device:
    if knobs.runtime.interpret:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("no GPU, and TRITON_INTERPRET is off")
    return torch.device("cuda")


@pytest.fixture(autouse=True, scope="session")
def products_in_float32() -> Iterator[None]:
    """Triton 3.7's interpreter multiplies the bits of bfloat16 as if they were integers, and float16 without BLAS."""
    create_dot = InterpreterBuilder.create_dot

    def widened(self, a, b, *args):
        def widen(x):
            if x.dtype.scalar == bfloat16:
                return self.create_fp_ext(x, float32)
            return TensorHandle(x.data.astype("float32"), float32)

        return create_dot(self, widen(a), widen(b), *args)

    InterpreterBuilder.create_dot = widened
    yield
    InterpreterBuilder.create_dot = create_dot


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """What torch.empty gives is NaN, so that reading it shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def triton_layers(device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """`with triton_layers():` the model runs over Triton's kernels, on the CPU."""
    if device.type == "cuda":
        pytest.skip("there the model takes these kernels by itself: tests/model and tests/engine")

    @contextmanager
    def patched() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(layers, "paged_attention", paged_attention_triton)
            patch.setattr(layers, "store_kv", store_kv_triton)
            patch.setattr(layers, "add_segmented_lora", add_segmented_lora_triton)
            yield

    return patched
