"""Real agent contexts: ReAct's few-shot prompt, HotpotQA questions, and what its tools answered.

The folder is that of the ReAct repository (MIT): `prompts_naive.json` and `hotpot_dev_v1_simplified.json`.
"""

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icarus.errors import InvalidInputError

PROMPTS_FILE, QUESTIONS_FILE = "prompts_naive.json", "hotpot_dev_v1_simplified.json"
_PROMPT = "webthink_simple"
"""Six examples of thought, action and observation. All workflows begin with some of them, as ReAct's agents do."""

Tokenise = Callable[[str], list[int]]


@dataclass(frozen=True)
class ReactData:
    """Text to make workflows of."""

    few_shot: str
    questions: tuple[str, ...]
    observations: tuple[str, ...]
    """What the tools of the examples answered."""


@dataclass(frozen=True)
class ReactWorkflow:
    """Token ids: the first prompt, and what follows each answer but the last."""

    context: list[int]
    observations: list[list[int]]


def read_react(folder: Path) -> ReactData:
    """Raises InvalidInputError naming the file that is missing or is not what it should be."""
    prompts = _read(folder / PROMPTS_FILE, dict)
    questions = _read(folder / QUESTIONS_FILE, list)
    texts = [text for text in prompts.values() if isinstance(text, str)]
    observations = dict.fromkeys(found for text in texts for found in re.findall(r"Observation \d+: (.+)", text))
    if not isinstance(prompts.get(_PROMPT), str) or not observations:
        raise InvalidInputError(f"{folder / PROMPTS_FILE} has no prompt {_PROMPT!r} with observations")
    try:
        asked = tuple(str(entry["question"]) for entry in questions)
    except (KeyError, TypeError):
        raise InvalidInputError(f"{folder / QUESTIONS_FILE} has an entry without a question") from None
    if not asked:
        raise InvalidInputError(f"{folder / QUESTIONS_FILE} has no questions")
    return ReactData(prompts[_PROMPT], asked, tuple(observations))


def make_workflow(
    data: ReactData, tokenise: Tokenise, number: int, num_turns: int, context_tokens: int, observation_tokens: int
) -> ReactWorkflow:
    """The `number`th workflow: a first prompt of exactly `context_tokens` that ends in a question of its own, then
    `num_turns - 1` observations of exactly `observation_tokens`."""
    draw = random.Random(f"react-{number}")
    question = tokenise(f"\nQuestion: {data.questions[draw.randrange(len(data.questions))]}\nThought 1:")
    examples = _fill([data.few_shot], tokenise, context_tokens - len(question))
    context = [*examples, *question][-context_tokens:]
    observations = [
        _fill(_shuffled(draw, data.observations), tokenise, observation_tokens) for _ in range(num_turns - 1)
    ]
    return ReactWorkflow(context, observations)


def _shuffled(draw: random.Random, texts: Sequence[str]) -> list[str]:
    return draw.sample(texts, len(texts))


def _fill(texts: Sequence[str], tokenise: Tokenise, count: int) -> list[int]:
    """`count` tokens of the texts, one after the other and from the start again."""
    ids: list[int] = []
    while len(ids) < count:
        for text in texts:
            ids += tokenise(f"\n{text}")
            if len(ids) >= count:
                break
    return ids[: max(count, 0)]


def _read(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}; --data is ReAct's folder") from None
    except ValueError as error:
        raise InvalidInputError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, kind):
        raise InvalidInputError(f"{path} holds a {type(content).__name__}, not a {kind.__name__}")
    return content
