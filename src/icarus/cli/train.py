"""`icarus train`: one specialist out of a base model and examples."""

import argparse
import shlex
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from transformers.utils.logging import disable_progress_bar

from icarus.cli.train_flags import read_settings
from icarus.config import ModelSection
from icarus.training.observer import Observer, StepFigures
from icarus.training.train import train

_ESTIMATE_SECONDS = 600.0
"""The time that is left is estimated from so many: a step may take a minute."""


def run(args: argparse.Namespace) -> int:
    settings = read_settings(args)
    disable_progress_bar()
    console = Console(highlight=False, markup=False)
    with TrainingBar(console) as bar:
        folder = train(settings, args.out, resume=args.resume, overwrite=args.overwrite, observer=bar)
    console.print(f"the specialist is in {folder}; serve it: {serving_command(settings.model, folder)}", soft_wrap=True)
    return 0


def serving_command(model: str, folder: Path) -> str:
    """The command, as a shell takes it."""
    base = [] if model == ModelSection().path else ["--model-path", model]
    return shlex.join(["icarus", "up", *base, "--worker-adapters", f"NAME={folder}"])


class TrainingBar(Observer):
    """Steps, loss, tokens a second and the time that is left, on a terminal; a line now and then elsewhere."""

    def __init__(self, console: Console):
        self._console = console
        columns = (BarColumn(), TextColumn("{task.fields[figures]}"), TimeRemainingColumn(elapsed_when_finished=True))
        self._progress = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            *columns,
            console=console,
            speed_estimate_period=_ESTIMATE_SECONDS,
        )
        self._task = self._progress.add_task("train", total=None, figures="", visible=False)
        self._tokens, self._seconds = 0, 0.0
        self._num_steps = 0

    def __enter__(self) -> "TrainingBar":
        self._progress.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._progress.stop()

    def note(self, line: str) -> None:
        self._console.print(line)

    def begin(self, num_done: int, num_steps: int) -> None:
        self._num_steps = num_steps
        self._progress.update(self._task, total=num_steps, completed=num_done, visible=True)

    def step(self, figures: StepFigures) -> None:
        self._tokens, self._seconds = self._tokens + figures.tokens, self._seconds + figures.seconds
        text = f"loss {figures.loss:.4f}, {self._tokens / self._seconds:.0f} tokens/s"
        self._progress.update(self._task, completed=figures.step, figures=text)
        if figures.validation_loss is not None:
            self._console.print(f"step {figures.step}: validation loss {figures.validation_loss:.4f}")
        elif not self._console.is_terminal and figures.step % max(self._num_steps // 20, 1) == 0:
            self._console.print(f"step {figures.step}/{self._num_steps}: {text}")
