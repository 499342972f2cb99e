"""The converters of the example specialists, on small data of the same shape."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from icarus.training.records import read_records

FOLDER = Path(__file__).parents[2] / "examples" / "specialists"


def convert(name: str, source: Path, out: Path) -> dict[str, list[dict]]:
    command = [sys.executable, str(FOLDER / f"convert_{name}.py"), str(source), str(out), "--num-validation", "1"]
    subprocess.run(command, check=True, timeout=60)
    splits = {}
    for split in ("train", "validation", "test"):
        read_records(out / f"{split}.jsonl")
        lines = (out / f"{split}.jsonl").read_text().splitlines()
        splits[split] = [[message["content"] for message in json.loads(line)["messages"]] for line in lines]
    return splits


def write_json_lines(file: Path, *lines: dict) -> None:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_snips(folder):
    line = {"text": "add it", "intent": "Add", "slots": {"z": ["a", "b"], "artist": ["Ça"]}}
    write_json_lines(folder / "train.jsonl", line, line)
    write_json_lines(folder / "validate.jsonl", line)
    return folder, [
        "add it",
        'Write the tool call as JSON: "add it"',
        '{"name": "Add", "arguments": {"z": ["a", "b"], "artist": "Ça"}}',
    ]


def make_banking77(folder):
    for name in ("train", "test"):
        (folder / f"{name}.csv").write_text('text,category\n"Where, pray?\n",card_arrival\nB,x\n')
    return folder, ["Where, pray?", "Name the banking intent.", "card arrival"]


def make_clinc150(folder):
    data = {
        f"{prefix}{name}": [["call me", "oos" if prefix else "make_call"]]
        for prefix in ("", "oos_")
        for name in ("train", "test")
    }
    (folder / "data.json").write_text(json.dumps(data))
    return folder / "data.json", ["call me", "Name the intent, or say out of scope.", "make call"]


def make_gsm8k(folder):
    line = {"question": "1+1?", "answer": "It is <<1+1=2>>2.\n#### 2"}
    for name in ("train", "test"):
        write_json_lines(folder / f"{name}.jsonl", line, line)
    return folder, ["1+1?", "Solve it step by step.", "It is 2.\n#### 2"]


@pytest.mark.parametrize("make", [make_snips, make_banking77, make_clinc150, make_gsm8k])
def test_the_text_comes_first_and_the_instruction_last(make, tmp_path):
    source, expected = make(tmp_path)
    splits = convert(make.__name__.removeprefix("make_"), source, tmp_path / "out")
    assert splits["test"][0] == expected
    assert len(splits["train"]) == len(splits["validation"]) == 1
    if make is make_clinc150:
        assert splits["test"][1][2] == "out of scope"
