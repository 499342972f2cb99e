"""SNIPS (folder with train.jsonl and validate.jsonl) to examples for `tools`: an utterance becomes a JSON call."""

import json
from pathlib import Path
from typing import Any

from conversion import Example, chat, parse_arguments, write_splits


def convert(line: dict[str, Any]) -> Example:
    """A slot with one value becomes text, with several a list. Arguments come as the text names them, read once.

    The instruction quotes the text: the base model, which writes the KV, then reads it a second time, and knows how it
    ends (docs/accuracy.md).
    """
    arguments = {name: values[0] if len(values) == 1 else values for name, values in line["slots"].items()}
    call = {"name": line["intent"], "arguments": arguments}
    instruction = f'Write the tool call as JSON: "{line["text"]}"'
    return chat(line["text"], instruction, json.dumps(call, ensure_ascii=False))


def read(file: Path) -> list[Example]:
    return [convert(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    args = parse_arguments(__doc__, "folder with SNIPS's train.jsonl and validate.jsonl")
    write_splits(args.out, read(args.source / "train.jsonl"), read(args.source / "validate.jsonl"), args.num_validation)


if __name__ == "__main__":
    main()
