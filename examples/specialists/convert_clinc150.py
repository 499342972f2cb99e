"""CLINC150 (data_full.json) to examples for `intents`: a request becomes one of 150 intents, or "out of scope"."""

import json
from collections.abc import Sequence

from conversion import Example, chat, parse_arguments, write_splits

INSTRUCTION = "Name the intent, or say out of scope."
OUT_OF_SCOPE = "out of scope"


def convert(text: str, intent: str) -> Example:
    return chat(text, INSTRUCTION, OUT_OF_SCOPE if intent == "oos" else intent.replace("_", " "))


def convert_all(*splits: Sequence[Sequence[str]]) -> list[Example]:
    return [convert(text, intent) for split in splits for text, intent in split]


def main() -> None:
    args = parse_arguments(__doc__, "CLINC150's data_full.json")
    data = json.loads(args.source.read_text(encoding="utf-8"))
    train, test = (convert_all(data[name], data[f"oos_{name}"]) for name in ("train", "test"))
    write_splits(args.out, train, test, args.num_validation)


if __name__ == "__main__":
    main()
