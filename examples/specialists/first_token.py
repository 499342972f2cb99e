"""What it costs to take an answer's first token from the base model, as the paper's listing does (docs/accuracy.md)."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from transformers.cache_utils import DynamicCache

from icarus.evaluation.oracle import Oracle, load_oracle
from icarus.evaluation.scores import METRICS, mean_score
from icarus.model.hub import resolve_model
from icarus.training.examples import Renderer
from icarus.training.records import read_records
from icarus.types import AdapterMode


class FirstTokenFromBase(Oracle):
    """The base model says the first token of each answer, the specialist the rest."""

    def _next(self, new_ids: Tensor, real: Tensor, cache: DynamicCache) -> Tensor:
        mode = self._mode
        if cache.get_seq_length() == 0:
            self._mode = None
        try:
            return super()._next(new_ids, real, cache)
        finally:
            self._mode = mode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--metric", default="json", choices=METRICS)
    parser.add_argument("--max-tokens", type=int, default=96, metavar="N")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N")
    args = parser.parse_args()
    folder, records = resolve_model(args.model), read_records(args.data)
    model, renderer = load_oracle(folder, args.adapter, "bfloat16"), Renderer(folder)
    references = [record.answer for record in records]
    for name, kind in (("decoder", Oracle), ("base", FirstTokenFromBase)):
        oracle = kind(model, AdapterMode.SHARED, renderer.end_ids)
        texts = answer(oracle, renderer, [renderer.prompt_ids(record.prompt) for record in records], args)
        scores = [METRICS[args.metric](text, reference) for text, reference in zip(texts, references, strict=True)]
        print(f"first token from the {name}: {args.metric} {mean_score(scores)} over {len(scores)} examples")


def answer(oracle: Oracle, renderer: Renderer, prompts: Sequence[Sequence[int]], args: argparse.Namespace) -> list[str]:
    """Batches are of like lengths."""
    texts = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(order), args.batch_size):
        batch = order[start : start + args.batch_size]
        for index, ids in zip(batch, oracle.generate([prompts[i] for i in batch], args.max_tokens), strict=True):
            texts[index] = renderer.decode(ids)
    return texts


if __name__ == "__main__":
    main()
