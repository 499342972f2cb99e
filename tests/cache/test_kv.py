"""The pool's memory where it does not fit. What blocks hold is tested with whoever writes them."""

from types import SimpleNamespace

import pytest
import torch

from icarus.cache import kv
from icarus.cache.kv import KVPool
from icarus.errors import ConfigError

SHAPE = SimpleNamespace(num_layers=3, num_kv_heads=2, head_dim=16)
BLOCK_BYTES = 3 * 2 * 4 * 2 * 16 * 4


@pytest.mark.parametrize("num_blocks", [10**9, 10**15, 10**18])
def test_a_pool_that_no_machine_has_names_the_setting(num_blocks):
    with pytest.raises(ConfigError) as caught:
        KVPool(SHAPE, num_blocks, 4, "float32", "cpu")
    for part in (
        f"[cache] num_blocks = {num_blocks} does not fit on device 'cpu'",
        f"a block takes {BLOCK_BYTES:,} bytes and all of them {num_blocks * BLOCK_BYTES:,}",
    ):
        assert part in str(caught.value)


def test_a_pool_that_a_gpu_has_no_room_for_says_how_much_would_fit(monkeypatch):
    def no_room(*_: object, **__: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "empty", no_room)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7 * BLOCK_BYTES + 5, 10**9))
    with pytest.raises(ConfigError, match=f"of which {7 * BLOCK_BYTES + 5:,} are free, enough for 7; a step needs"):
        KVPool(SHAPE, 100, 4, "float32", "cuda")


def test_a_pool_that_the_machine_might_have_is_tried(monkeypatch):
    """Memory that looks taken may be given back."""
    monkeypatch.setattr(kv, "_free_bytes", lambda device: 0)
    assert KVPool(SHAPE, 5, 4, "float32", "cpu").tensor.nbytes == 5 * BLOCK_BYTES


def test_a_pool_that_the_container_has_no_room_for_says_how_much_would_fit(monkeypatch):
    """Whose limit no figure of the machine tells: it would be killed while it writes the pool."""
    monkeypatch.setattr(kv, "room_in_groups", lambda: iter([7 * BLOCK_BYTES + 5]))
    with pytest.raises(ConfigError, match=f"of which {7 * BLOCK_BYTES + 5:,} are free, enough for 7; a step needs"):
        KVPool(SHAPE, 8, 4, "float32", "cpu")
    assert KVPool(SHAPE, 7, 4, "float32", "cpu").num_blocks == 7


def test_a_lost_gpu_is_no_setting(monkeypatch):
    def lost(*_: object, **__: object) -> torch.Tensor:
        raise torch.AcceleratorError("an illegal memory access")

    monkeypatch.setattr(torch, "empty", lost)
    with pytest.raises(torch.AcceleratorError):
        KVPool(SHAPE, 5, 4, "float32", "cuda")
