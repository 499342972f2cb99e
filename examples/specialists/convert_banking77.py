"""BANKING77 (folder with train.csv and test.csv) to examples for `banking`: a question becomes its intent."""

import csv
from pathlib import Path

from conversion import Example, chat, parse_arguments, write_splits

INSTRUCTION = "Name the banking intent."


def convert(text: str, category: str) -> Example:
    return chat(text.strip(), INSTRUCTION, category.replace("_", " "))


def read(file: Path) -> list[Example]:
    with file.open(encoding="utf-8", newline="") as stream:
        return [convert(row["text"], row["category"]) for row in csv.DictReader(stream)]


def main() -> None:
    args = parse_arguments(__doc__, "folder with BANKING77's train.csv and test.csv")
    write_splits(args.out, read(args.source / "train.csv"), read(args.source / "test.csv"), args.num_validation)


if __name__ == "__main__":
    main()
