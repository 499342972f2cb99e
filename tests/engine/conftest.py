import pytest
import torch
from engine.harness import Specialists
from tiny import PRIVATE_TARGETS, tiny_adapter, tiny_llama

from icarus.types import AdapterMode

SHARED, PRIVATE = AdapterMode.SHARED, AdapterMode.PRIVATE


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    torch.set_num_threads(1)
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny", heads=4, kv_heads=2)


@pytest.fixture(scope="session")
def specialists(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    shared = {f"s{i}": (tiny_adapter(folder / f"s{i}", base, rank=2 + i, seed=i), SHARED) for i in range(4)}
    zero = tiny_adapter(folder / "zero", base, seed=9, zero=True)
    private = tiny_adapter(folder / "private", base, seed=10, targets=PRIVATE_TARGETS)
    return Specialists(base, {**shared, "zero": (zero, SHARED), "private": (private, PRIVATE)})
