"""The examples of a file that are short enough to train on."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from icarus.errors import InvalidInputError
from icarus.training.examples import Example, Renderer
from icarus.training.records import read_hashed
from icarus.training.settings import TrainSettings


@dataclass(frozen=True)
class Fitted:
    """Examples that are short enough."""

    examples: list[Example]
    num_truncated: int
    num_left_out: int
    sha256: str = ""
    """Hex, of the file that they are from."""


def load_examples(path: str, model_folder: Path, settings: TrainSettings, note: Callable[[str], None]) -> Fitted:
    """The examples of a file that fit; none for no file. Raises InvalidInputError where none does."""
    if not path:
        return Fitted([], 0, 0)
    renderer = Renderer(model_folder)
    max_length = min(settings.max_length, renderer.context_length)
    records, sha256 = read_hashed(path)
    try:
        fitted = fit(map(renderer.example, records), max_length, settings.truncate)
    except InvalidInputError as error:
        raise InvalidInputError(f"{path}, {error}") from None
    name = Path(path).name
    if fitted.num_left_out:
        note(f"{name}: {fitted.num_left_out} examples have more than {max_length} tokens and are left out")
    if fitted.num_truncated:
        note(
            f"{name}: {fitted.num_truncated} prompts were cut at their beginning to {max_length} tokens with the answer"
        )
    if not fitted.examples:
        raise InvalidInputError(f"{path}: no example fits into {max_length} tokens; give a larger --max-length")
    note(f"{name}: {len(fitted.examples)} examples, {sum(map(len, fitted.examples))} tokens")
    return dataclasses.replace(fitted, sha256=sha256)


def fit(examples: Iterable[Example], max_length: int, truncate: bool) -> Fitted:
    """Cuts the beginning of prompts that are too long, or leaves their examples out. A prompt keeps its last token."""
    kept, num_truncated, num_left_out = [], 0, 0
    for example in examples:
        room = max_length - len(example.answer_ids)
        if len(example) <= max_length:
            kept.append(example)
        elif truncate and room >= 1:
            kept.append(Example(example.prompt_ids[-room:], example.answer_ids))
            num_truncated += 1
        else:
            num_left_out += 1
    return Fitted(kept, num_truncated, num_left_out)
