"""Answers and losses by transformers and peft: the reference for the serving path."""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from icarus.adapters.metadata import read_metadata, resolve_mode
from icarus.cli.flags import read_config
from icarus.errors import InvalidInputError
from icarus.model.digest import base_digest
from icarus.model.hub import resolve_model
from icarus.training.evaluate import Answer
from icarus.training.examples import Renderer
from icarus.training.lora_model import load_base
from icarus.training.loss import answer_loss
from icarus.training.mean_loss import mean_answer_loss
from icarus.training.model_config import check_window
from icarus.training.oracle import Oracle, load_oracle
from icarus.training.records import Record
from icarus.types import AdapterMode


def answer_all(
    args: argparse.Namespace, records: Sequence[Record], note: Callable[[str], None], advance: Callable[[int], None]
) -> tuple[list[Answer], float]:
    """The answers in order, and the seconds that they took. `advance` is called with the size of each batch."""
    folder, model, mode = _load(args, note)
    renderer = Renderer(folder)
    oracle = Oracle(model, mode, renderer.end_ids)
    prompts = [renderer.prompt_ids(record.prompt) for record in records]
    check_window(model.config, max(map(len, prompts)) + args.max_tokens)
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers: dict[int, Answer] = {}
    started = time.perf_counter()
    for start in range(0, len(prompts), args.in_flight):
        batch = by_length[start : start + args.in_flight]
        for index, ids in zip(batch, oracle.generate([prompts[i] for i in batch], args.max_tokens), strict=True):
            finished = ids[-1] in renderer.end_ids
            answers[index] = Answer(renderer.decode(ids), len(prompts[index]), len(ids), finished)
        advance(len(batch))
    return [answers[index] for index in range(len(records))], time.perf_counter() - started


def measure_loss(args: argparse.Namespace, records: Sequence[Record], note: Callable[[str], None]) -> float:
    """Nats an answer token, computed by the training code."""
    folder, model, mode = _load(args, note)
    renderer = Renderer(folder)
    examples = [renderer.example(record) for record in records]
    check_window(model.config, max(map(len, examples)))
    return mean_answer_loss(answer_loss(model, mode or AdapterMode.PRIVATE), examples, args.in_flight)


def _load(args: argparse.Namespace, note: Callable[[str], None]) -> tuple[Path, Any, AdapterMode | None]:
    """The base's folder, the model, and the adapter's mode; None for the base alone."""
    disable_progress_bar()
    folder = resolve_model(args.model, note)
    config = read_config(args).model
    if not args.adapter:
        # transformers' own `to` is typed wrongly.
        return folder, torch.nn.Module.to(load_base(folder, config.dtype, 0).eval(), config.device), None
    adapter = Path(args.adapter)
    if not adapter.is_dir():
        raise InvalidInputError(f"--adapter {adapter} is not a folder; give one that icarus train wrote")
    mode = resolve_mode(adapter.name, None, read_metadata(adapter), base_digest(folder))
    return folder, load_oracle(folder, adapter, config.dtype).to(config.device), mode
