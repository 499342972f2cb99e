"""An engine in this process: no gRPC, no transfer, the caller takes the steps."""

import itertools
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from icarus.adapters.lora import LoraWeights
from icarus.adapters.peft_folder import load_peft_folder
from icarus.cache.hashing import root_hash
from icarus.cache.kv import KVPool
from icarus.cache.leases import LeaseTable
from icarus.cache.pool import BlockPool
from icarus.config import Config
from icarus.engine.engine import Engine
from icarus.engine.events import EngineEvent, Failed
from icarus.engine.lender import Lender
from icarus.engine.request import Request
from icarus.engine.runner import Runner
from icarus.engine.scheduler import Scheduler
from icarus.model.two_stream import TwoStreamModel
from icarus.types import AdapterMode, RequestId, SamplingParams

_ids = itertools.count()


class InProcessEngine:
    """An engine with a pool of its own over a model that others may share. Nothing is reused between requests."""

    def __init__(self, model: TwoStreamModel, config: Config, num_requests: int, tokens_per_request: int):
        """The pool holds `num_requests` of that length."""
        self._block_size = config.cache.block_size
        num_blocks = num_requests * (2 + tokens_per_request // self._block_size)
        self._kv = KVPool(model.config, num_blocks, self._block_size, config.model.dtype, config.model.device)
        pool, settings = BlockPool(num_blocks), config.engine
        max_running = max(settings.max_running, num_requests)
        scheduler = Scheduler(pool, settings.max_batch_tokens, max_running, num_requests, prefix_reuse=False)
        runner = Runner(model, self._kv, config.model.device, settings.cuda_graphs)
        lender = Lender(pool, LeaseTable(1.0), "benchmark", max_leased_blocks=0)
        self._engine = Engine(runner, pool, scheduler, lender)

    @property
    def kv_bytes(self) -> int:
        return self._kv.tensor.nbytes

    @property
    def kv_bytes_per_token(self) -> int:
        return self._kv.block_bytes // self._block_size

    @property
    def num_running(self) -> int:
        return len(self._engine.running)

    @property
    def is_decoding(self) -> bool:
        """Whether every running request has all of its prompt computed."""
        running = self._engine.running
        return bool(running) and all(request.num_missing <= 1 and request.num_output for request in running)

    def submit(self, token_ids: Sequence[int], adapter: LoraWeights | None, max_tokens: int) -> None:
        private = adapter is not None and adapter.mode is AdapterMode.PRIVATE
        request = Request(
            request_id=RequestId(f"request-{next(_ids)}"),
            token_ids=list(token_ids),
            adapter=adapter,
            writer=adapter.name if adapter else "",
            sampling=SamplingParams(max_tokens=max_tokens),
            root=root_hash("benchmark", "default", adapter.digest if adapter and private else ""),
            block_size=self._block_size,
            sink=_raise_failures,
        )
        self._engine.submit(request)

    def step(self) -> float:
        """Seconds that a step took."""
        started = time.perf_counter()
        self._engine.step()
        return time.perf_counter() - started

    def finish(self) -> float:
        """Steps until nothing runs; seconds."""
        started = time.perf_counter()
        while self._engine.has_work:
            self._engine.step()
        return time.perf_counter() - started


def load_specialists(model: TwoStreamModel, config: Config, folders: dict[str, Path], mode: AdapterMode, digest: str):
    """Their weights, in the order of the folders, in the form that a worker loads them in for `mode`."""
    return [
        load_peft_folder(
            folder,
            name,
            mode,
            shapes=model.config.linear_shapes,
            num_layers=model.config.num_layers,
            base_digest=digest,
            dtype=getattr(torch, config.model.dtype),
            device=config.model.device,
        )
        for name, folder in folders.items()
    ]


def _raise_failures(event: EngineEvent) -> None:
    if isinstance(event, Failed):
        raise event.error
