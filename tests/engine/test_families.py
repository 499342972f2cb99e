"""Every family through the engine: batched, chunked, reused, beyond its window; greedy equals the oracle."""

import pytest
import tiny
import torch
from engine.harness import BLOCK_SIZE, Harness, Specialists
from model.setups import MODELS

from icarus.types import AdapterMode

SHARED, PRIVATE = AdapterMode.SHARED, AdapterMode.PRIVATE


@pytest.fixture(scope="module", params=MODELS)
def base(request, tmp_path_factory):
    torch.set_num_threads(1)
    return tiny.tiny_model(tmp_path_factory.mktemp("family") / "base", **MODELS[request.param], seed=7)


@pytest.fixture(scope="module")
def specialists(base, tmp_path_factory):
    root, make = tmp_path_factory.mktemp("adapters"), tiny.tiny_adapter
    return Specialists(
        base,
        {
            "s0": (make(root / "s0", base, rank=2, seed=1), SHARED),
            "s1": (make(root / "s1", base, rank=5, seed=2), SHARED),
            "zero": (make(root / "zero", base, seed=3, zero=True), SHARED),
            "private": (make(root / "private", base, seed=4, targets=tiny.PRIVATE_TARGETS), PRIVATE),
        },
    )


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(3, 259, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_a_mixed_batch_in_chunks(base, specialists):
    harness = Harness(base, max_batch_tokens=16)
    turns = [
        harness.submit(prompt(3 + 9 * i, seed=i), specialists[name] if name else None, max_tokens=14)
        for i, name in enumerate(["s0", "", "private", "zero", "s1"])
    ]
    harness.run()
    for turn in turns:
        specialists.check_greedy(turn)
    assert specialists.excused <= 2


def test_a_conversation_reads_what_others_wrote(base, specialists):
    harness, history = Harness(base, max_batch_tokens=16), prompt(21, seed=9)
    for name in ["s0", "s1", ""]:
        turn = harness.generate(history, specialists[name] if name else None, max_tokens=9)
        specialists.check_greedy(turn)
        history = [*turn.request.token_ids, *prompt(3, seed=len(history))]
    account = turn.ended.account
    assert account.local_tokens == (turn.request.num_prompt - 4) // BLOCK_SIZE * BLOCK_SIZE
    assert account.cross_adapter_tokens == account.local_tokens
