"""The folder that a run writes: a PEFT adapter when it is done, and on the way a log and checkpoints.

train.json      the settings, and what the data were
log.jsonl       a line a step
checkpoints/    while it runs
adapter_config.json adapter_model.safetensors icarus.json README.md     when it is done
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from icarus.errors import AlreadyExistsError, InvalidInputError
from icarus.model.hub import published_name
from icarus.training.data import Fitted
from icarus.training.examples import token_digest
from icarus.training.settings import TrainSettings

ADAPTER_FILE = "adapter_model.safetensors"
_IDENTITY_FILE = "train.json"
_FREE_TO_CHANGE = {"model", "save_every", "data_note", "learning_rate", "token_ids_sha256"}
"""A run that diverged may go on with a lower rate. Which model it is, its digest says. Some chat templates write the
day's date, so token ids may change overnight."""


class RunFolder:
    """Claim it with `start` or `resume`, which check that it is what they expect."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.log = self.path / "log.jsonl"

    def start(self, identity: Mapping[str, Any], overwrite: bool) -> None:
        """An empty folder. Raises AlreadyExistsError where it is not, and cannot or must not be overwritten."""
        if self.path.exists() and not (self.path.is_dir() and not any(self.path.iterdir())):
            if not overwrite:
                raise AlreadyExistsError(f"{self.path} exists; go on with --resume, or replace it with --overwrite")
            if not (self.path / _IDENTITY_FILE).is_file():
                raise AlreadyExistsError(
                    f"{self.path} was not made by icarus train; delete it yourself, or choose another"
                )
            shutil.rmtree(self.path.resolve())
        try:
            self.path.resolve().mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInputError(f"folder {self.path} cannot be made: {error.strerror}") from None
        (self.path / _IDENTITY_FILE).write_text(json.dumps(identity, indent=2) + "\n")

    def resume(self, identity: Mapping[str, Any], note: Callable[[str], None]) -> None:
        """Goes on with the same run; starts it where there is nothing yet. `note` hears of other token ids than before.

        Raises AlreadyExistsError for a finished run, InvalidInputError for a run with other settings or data: all but
        the rate of learning and what does not touch the weights.
        """
        file = self.path / _IDENTITY_FILE
        if not file.is_file():
            return self.start(identity, overwrite=False)
        if (self.path / ADAPTER_FILE).is_file():
            raise AlreadyExistsError(f"the run in {self.path} is finished; replace it with --overwrite")
        try:
            earlier = json.loads(file.read_text())
            if not isinstance(earlier, dict):
                raise ValueError("it holds no object")
        except (OSError, ValueError) as error:
            raise InvalidInputError(f"{file} cannot be read: {error}") from None
        now = json.loads(json.dumps(identity))
        changed = [key for key in sorted({*earlier, *now} - _FREE_TO_CHANGE) if earlier.get(key) != now.get(key)]
        if changed:
            key = changed[0]
            raise InvalidInputError(
                f"the run in {self.path} has {key} {earlier.get(key)!r}, this command {now.get(key)!r} "
                f"({len(changed)} different in all); give the same settings, or start over with --overwrite"
            )
        if earlier.get("token_ids_sha256") != now["token_ids_sha256"]:
            note("the data come to other token ids than before: the tokenizer, chat template or its date is another")
        file.write_text(json.dumps(identity, indent=2) + "\n")

    def cut_log(self, num_steps_done: int) -> list[dict[str, Any]]:
        """Drops the lines of steps that will be done again; returns the others."""
        lines = self.log.read_text().splitlines(keepends=True)[:num_steps_done] if self.log.is_file() else []
        self.log.write_text("".join(lines))
        return [json.loads(line) for line in lines]

    def append_log(self, figures: Mapping[str, Any]) -> None:
        with self.log.open("a") as stream:
            stream.write(json.dumps(figures) + "\n")

    def finish(self) -> None:
        shutil.rmtree(self.checkpoints, ignore_errors=True)


def identity_of(
    settings: TrainSettings, data: Fitted, validation: Fitted, base_digest: str, num_processes: int
) -> dict[str, Any]:
    """What two parts of one run must agree on. The paths of the base and the data may change, their contents not.
    What the tokenizer and the chat template make of them is noted."""
    fields = dataclasses.asdict(settings) | {"model": published_name(settings.model)}
    del fields["data"], fields["validation"]
    contents = {
        "data_sha256": data.sha256,
        "validation_sha256": validation.sha256 or None,
        "token_ids_sha256": token_digest([*data.examples, *validation.examples]),
        "base_digest": base_digest,
    }
    return fields | contents | {"num_processes": num_processes}
