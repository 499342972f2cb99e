"""Training and test files: JSONL, one example a line. Free of torch.

{"messages": [{"role": "user", "content": "..."}, ..., {"role": "assistant", "content": "the answer"}]}
{"prompt": "...", "completion": "the answer"}
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icarus.errors import InvalidInputError

ChatMessages = tuple[Mapping[str, str], ...]


@dataclass(frozen=True)
class Record:
    """One line: what the model is given, and what it should answer."""

    prompt: str | ChatMessages
    """Text as it is, or messages for the model's chat template."""
    answer: str
    line: int = 0
    """Of its file, from 1."""


def read_records(path: str | Path) -> list[Record]:
    """Raises InvalidInputError naming the file, the line and the reason."""
    return read_hashed(path)[0]


def read_hashed(path: str | Path) -> tuple[list[Record], str]:
    """The records, and the hex SHA-256 of the bytes that they were read from: a pipe has them once. Raises as
    `read_records`."""
    try:
        content = Path(path).read_bytes()
        lines = content.decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"data file {path} cannot be read: {error}") from None
    records = [_parse(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not records:
        raise InvalidInputError(f"data file {path} is empty; it takes one JSON object a line")
    return records, hashlib.sha256(content).hexdigest()


def _parse(path: str | Path, number: int, line: str) -> Record:
    def refuse(problem: str) -> InvalidInputError:
        return InvalidInputError(f"{path}, line {number}: {problem}")

    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise refuse(f"this is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise refuse(f"a line holds an object, not {type(fields).__name__}")
    if ("messages" in fields) == ("prompt" in fields or "completion" in fields):
        raise refuse("give either 'messages', or 'prompt' and 'completion'")
    try:
        json.dumps(fields, ensure_ascii=False).encode()  # JSON may hold half a character, which is no text
        record = _from_messages(fields["messages"]) if "messages" in fields else _from_texts(fields)
    except ValueError as error:
        raise refuse(str(error)) from None
    return dataclasses.replace(record, line=number)


def _from_messages(messages: Any) -> Record:
    if not isinstance(messages, list) or not all(map(_is_message, messages)):
        raise ValueError("'messages' is a list of objects with 'role' and 'content', both text")
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise ValueError("there is no answer to learn: the last of at least two messages has the role 'assistant'")
    if not messages[-1]["content"].strip():
        raise ValueError("there is no answer to learn: the last message is empty")
    return Record(tuple(messages[:-1]), messages[-1]["content"])


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and set(message) == {"role", "content"}
        and all(isinstance(value, str) for value in message.values())
    )


def _from_texts(fields: Mapping[str, Any]) -> Record:
    prompt, completion = fields.get("prompt"), fields.get("completion")
    if not isinstance(prompt, str) or not isinstance(completion, str):
        raise ValueError("'prompt' and 'completion' are both text")
    if not prompt:
        raise ValueError("'prompt' is empty")
    if not completion.strip():
        raise ValueError("there is no answer to learn: 'completion' is empty")
    return Record(prompt, completion)
