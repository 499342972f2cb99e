"""An engine over a tiny model, driven step by step, and the oracle's verdict on what it said."""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from oracle import base_logits, private_logits, shared_logits
from tiny import DEVICE, load_adapted_reference, load_reference, read_adapter
from transfer.inprocess import InProcessTransport

from icarus.adapters.lora import LoraWeights
from icarus.cache.hashing import root_hash
from icarus.cache.kv import KVPool
from icarus.cache.leases import LeaseTable
from icarus.cache.pool import BlockPool
from icarus.engine.engine import Engine
from icarus.engine.events import Admitted, EngineEvent, Failed, Finished, Prefilled, Sampled
from icarus.engine.lender import Lender
from icarus.engine.request import Request
from icarus.engine.runner import Runner
from icarus.engine.scheduler import Scheduler
from icarus.model.loading import load_model
from icarus.transfer.transport import PoolRegion
from icarus.types import AdapterMode, RequestId, SamplingParams

BLOCK_SIZE = 4
_ids = itertools.count()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Turn:
    """A request and what the engine said of it."""

    request: Request
    events: list[EngineEvent]

    @property
    def output(self) -> list[int]:
        return [event.token_id for event in self.events if isinstance(event, Sampled)]

    @property
    def ended(self) -> Finished | Prefilled | Failed | None:
        return next((e for e in self.events if isinstance(e, Finished | Prefilled | Failed)), None)

    @property
    def admitted(self) -> Admitted:
        return next(event for event in self.events if isinstance(event, Admitted))


class Harness:
    """`engine` with everything around it that a test may want to look at."""

    def __init__(
        self,
        folder: Path,
        num_blocks: int = 64,
        max_batch_tokens: int = 32,
        prefix_reuse: bool = True,
        lease_seconds: float = 10.0,
        clock: Callable[[], float] | None = None,
    ):
        self.model = load_model(folder, "float32", DEVICE)
        self.kv = KVPool(self.model.config, num_blocks, BLOCK_SIZE, "float32", DEVICE)
        self.pool = BlockPool(num_blocks)
        self.clock = Clock()
        self.scheduler = Scheduler(self.pool, max_batch_tokens, 32, 32, prefix_reuse)
        self.leases = LeaseTable(lease_seconds)
        self.lender = Lender(self.pool, self.leases, "me", num_blocks, clock or self.clock)
        self.engine = Engine(Runner(self.model, self.kv, DEVICE), self.pool, self.scheduler, self.lender)
        data = self.kv.tensor
        self.transport = InProcessTransport(PoolRegion(data.data_ptr(), self.kv.block_bytes, num_blocks, "cpu"))

    def submit(
        self,
        token_ids: Sequence[int],
        adapter: LoraWeights | None = None,
        max_tokens: int = 8,
        sampling: SamplingParams | None = None,
        **kwargs,
    ) -> Turn:
        events: list[EngineEvent] = []
        private = adapter is not None and adapter.mode == AdapterMode.PRIVATE
        request = Request(
            request_id=RequestId(f"turn-{next(_ids)}"),
            token_ids=list(token_ids),
            adapter=adapter,
            writer=adapter.name if adapter else "",
            sampling=sampling or SamplingParams(max_tokens=max_tokens),
            root=root_hash("fingerprint", "default", adapter.digest if private else ""),
            block_size=BLOCK_SIZE,
            sink=events.append,
            **kwargs,
        )
        self.engine.submit(request)
        return Turn(request, events)

    def step(self) -> None:
        """A step with the books checked before and after."""
        self.engine.check()
        self.engine.step()
        self.engine.check()

    def run(self, max_steps: int = 2000) -> None:
        """Steps until nothing runs."""
        while self.engine.has_work:
            self.step()
            max_steps -= 1
            assert max_steps > 0, "the engine does not come to an end"

    def generate(self, token_ids: Sequence[int], adapter: LoraWeights | None = None, **kwargs) -> Turn:
        turn = self.submit(token_ids, adapter, **kwargs)
        self.run()
        assert isinstance(turn.ended, Finished), turn.events
        return turn

    def read_from(self, owner: "Harness", block_ids: Sequence[int], into: Sequence[int]) -> None:
        if DEVICE != "cpu":
            pytest.skip("the in-process transport copies the CPU's memory alone")
        self.transport.connect("owner", owner.transport.metadata(), owner.pool.num_blocks)
        self.transport.post_read("owner", list(block_ids), list(into))


class Specialists:
    """A base model's adapters, for the engine and for the oracle."""

    def __init__(self, base: Path, folders: dict[str, tuple[Path, AdapterMode]]):
        self._base = base
        self._folders = folders
        self.weights = {name: read_adapter(path, mode) for name, (path, mode) in folders.items()}
        self.excused = 0
        self._reference = functools.cache(self._load_reference)

    def __getitem__(self, name: str) -> LoraWeights:
        return self.weights[name]

    def logits(self, name: str, token_ids: Sequence[int]) -> torch.Tensor:
        """The oracle's logits [tokens, vocab]; "" is the base."""
        if not name:
            return base_logits(self._reference(name), token_ids)
        shared = self.weights[name].mode == AdapterMode.SHARED
        return (shared_logits if shared else private_logits)(self._reference(name), token_ids)

    def _load_reference(self, name: str):
        return load_adapted_reference(self._base, self._folders[name][0]) if name else load_reference(self._base)

    def folder(self, name: str) -> Path:
        return self._folders[name][0]

    def check_greedy(self, turn: Turn) -> None:
        """As `check_tokens`, of an engine's turn, which has said something."""
        request = turn.request
        assert turn.output, turn.events
        self.check_tokens(request.adapter.name if request.adapter else "", request.token_ids, request.num_prompt)

    def check_tokens(self, name: str, token_ids: Sequence[int], num_prompt: int) -> None:
        """Every token after the prompt is the oracle's choice, given the tokens before it (one teacher-forced pass).

        Excused, and counted, is a token where the oracle's best two are within 1e-3.
        """
        logits = self.logits(name, token_ids[:-1])[num_prompt - 1 :]
        for row, token in zip(logits, token_ids[num_prompt:], strict=True):
            best = row.topk(2)
            if int(best.indices[0]) != token:
                gap = float(best.values[0] - best.values[1])
                assert gap < 1e-3, f"{name or 'base'}: said {token}, the oracle {int(best.indices[0])} by {gap}"
                self.excused += 1
