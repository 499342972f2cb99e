"""GSM8K (folder with train.jsonl and test.jsonl) to examples for `maths`: a problem becomes steps and "#### number"."""

import json
import re
from pathlib import Path

from conversion import Example, chat, parse_arguments, write_splits

INSTRUCTION = "Solve it step by step."
_CALCULATOR_NOTE = re.compile(r"<<[^>]*>>")


def convert(question: str, answer: str) -> Example:
    """Without the notes for a calculator, which no specialist has."""
    return chat(question, INSTRUCTION, _CALCULATOR_NOTE.sub("", answer))


def read(file: Path) -> list[Example]:
    lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return [convert(line["question"], line["answer"]) for line in lines]


def main() -> None:
    args = parse_arguments(__doc__, "folder with GSM8K's train.jsonl and test.jsonl")
    write_splits(args.out, read(args.source / "train.jsonl"), read(args.source / "test.jsonl"), args.num_validation)


if __name__ == "__main__":
    main()
