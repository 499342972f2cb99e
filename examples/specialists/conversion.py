"""What the converters share: the shape of an example, and the two files that they write."""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

Example = dict[str, list[dict[str, str]]]


def chat(text: str, instruction: str, answer: str) -> Example:
    """The text that everybody shares comes first; what this specialist is to do with it comes last."""
    user = [{"role": "user", "content": content} for content in (text, instruction)]
    return {"messages": [*user, {"role": "assistant", "content": answer}]}


def parse_arguments(description: str | None, source: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("source", type=Path, help=source)
    parser.add_argument("out", type=Path, help="folder for train.jsonl, validation.jsonl and test.jsonl")
    text = "training examples put aside to choose settings on (default: 300)"
    parser.add_argument("--num-validation", type=int, default=300, metavar="N", help=text)
    return parser.parse_args()


def write_splits(out: Path, train: Sequence[Example], test: Sequence[Example], num_validation: int) -> None:
    """Puts the same random training examples aside each time."""
    aside = set(random.Random(0).sample(range(len(train)), num_validation))
    out.mkdir(parents=True, exist_ok=True)
    for name, examples in (
        ("train", [example for index, example in enumerate(train) if index not in aside]),
        ("validation", [example for index, example in enumerate(train) if index in aside]),
        ("test", test),
    ):
        lines = (json.dumps(example, ensure_ascii=False) + "\n" for example in examples)
        (out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
