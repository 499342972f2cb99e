"""From answers to a report. Free of torch; where answers come from is the caller's choice."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icarus.errors import InvalidInputError
from icarus.evaluation.scores import METRICS, Score, mean_score
from icarus.training.records import Record


@dataclass(frozen=True)
class Answer:
    """What the model said."""

    text: str
    num_prompt_tokens: int
    num_tokens: int
    finished: bool
    """False where it was cut off at `max_tokens`."""


@dataclass(frozen=True)
class Judged:
    """One example of a report."""

    index: int
    prediction: str
    reference: str
    score: float
    finished: bool


@dataclass(frozen=True)
class Report:
    """What `icarus eval --json` writes."""

    model: str
    adapter: str
    through: str
    """"gateway" or "oracle"."""
    data: str
    metric: str
    score: Score
    num_examples: int
    num_unfinished: int
    answer_loss: float | None
    """Nats an answer token, where it was asked for."""
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    examples: list[Judged]

    def summary(self) -> str:
        """One line, for people and for the model card."""
        loss = "" if self.answer_loss is None else f", answer loss {self.answer_loss:.4f}"
        cut = f", {self.num_unfinished} cut off" if self.num_unfinished else ""
        return (
            f"{self.data}: {self.metric} {self.score} over {self.num_examples} examples{loss}{cut}, "
            f"greedy, through the {self.through}"
        )


def judge(
    records: Sequence[Record],
    answers: Sequence[Answer],
    metric: str,
    seconds: float,
    answer_loss: float | None,
    **names: str,
) -> Report:
    """`names`: model, adapter, through and data."""
    score = METRICS[metric]
    judged = [
        Judged(index, answer.text, record.answer, score(answer.text, record.answer), answer.finished)
        for index, (record, answer) in enumerate(zip(records, answers, strict=True))
    ]
    return Report(
        **names,
        metric=metric,
        score=mean_score([each.score for each in judged]),
        num_examples=len(judged),
        num_unfinished=sum(not each.finished for each in judged),
        answer_loss=answer_loss,
        prompt_tokens=sum(answer.num_prompt_tokens for answer in answers),
        completion_tokens=sum(answer.num_tokens for answer in answers),
        seconds=seconds,
        examples=judged,
    )


def write_report(path: str | Path, report: Report) -> None:
    fields: dict[str, Any] = dataclasses.asdict(report)
    try:
        Path(path).write_text(json.dumps(fields, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise InvalidInputError(f"--json {path} cannot be written: {error.strerror}") from None
