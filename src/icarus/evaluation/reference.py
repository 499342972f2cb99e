"""Answers and losses by transformers and peft: the reference for the serving path."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from icarus.adapters.metadata import read_metadata, resolve_mode
from icarus.errors import InvalidInputError
from icarus.evaluation.oracle import Oracle, load_oracle
from icarus.evaluation.report import Answer
from icarus.model.digest import base_digest
from icarus.training.examples import Renderer
from icarus.training.lora_model import load_base
from icarus.training.loss import answer_loss
from icarus.training.mean_loss import mean_answer_loss
from icarus.training.model_config import check_window
from icarus.training.records import Record
from icarus.types import AdapterMode


class Reference:
    """A specialist, or the base alone."""

    def __init__(self, base: Path, adapter: Path | None, dtype: str, device: str):
        """Raises InvalidInputError where `adapter` is no folder, ConfigError where a folder cannot be loaded."""
        self._model, self._mode = _load(base, adapter, dtype, device)
        self._renderer = Renderer(base)

    def answer_all(
        self, records: Sequence[Record], max_tokens: int, batch_size: int, advance: Callable[[int], None]
    ) -> tuple[list[Answer], float]:
        """The answers in order, and the seconds that they took. `advance` is called with the size of each batch."""
        oracle = Oracle(self._model, self._mode, self._renderer.end_ids)
        prompts = [self._renderer.prompt_ids(record.prompt) for record in records]
        check_window(self._model.config, max(map(len, prompts)) + max_tokens)
        by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        answers: dict[int, Answer] = {}
        started = time.perf_counter()
        for start in range(0, len(prompts), batch_size):
            batch = by_length[start : start + batch_size]
            for index, ids in zip(batch, oracle.generate([prompts[i] for i in batch], max_tokens), strict=True):
                finished = ids[-1] in self._renderer.end_ids
                answers[index] = Answer(self._renderer.decode(ids), len(prompts[index]), len(ids), finished)
            advance(len(batch))
        return [answers[index] for index in range(len(records))], time.perf_counter() - started

    def mean_loss(self, records: Sequence[Record], batch_size: int) -> float:
        """Nats a token of the right answers, computed by the training code."""
        examples = [self._renderer.example(record) for record in records]
        check_window(self._model.config, max(map(len, examples)))
        loss = answer_loss(self._model, self._mode or AdapterMode.PRIVATE)
        return mean_answer_loss(loss, examples, batch_size)


def _load(base: Path, adapter: Path | None, dtype: str, device: str) -> tuple[Any, AdapterMode | None]:
    """The model, and the adapter's mode; None for the base alone."""
    if adapter is None:
        # transformers' own `to` is typed wrongly.
        return torch.nn.Module.to(load_base(base, dtype, 0).eval(), device), None
    if not adapter.is_dir():
        raise InvalidInputError(f"adapter {adapter} is not a folder; give one that icarus train wrote")
    mode = resolve_mode(adapter.name, None, read_metadata(adapter), base_digest(base))
    return load_oracle(base, adapter, dtype).to(device), mode
