"""`icarus train`: the loop. What a step sees and does depends on the settings and the step's number alone."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from peft import PeftModel

from icarus.adapters.metadata import AdapterMetadata
from icarus.errors import IcarusError, InvalidInputError
from icarus.model.digest import base_digest
from icarus.model.hub import resolve_model
from icarus.training.adapted import add_lora, check_two_streams, load_base
from icarus.training.batches import DataOrder, split_step
from icarus.training.card import RunFacts, write_card
from icarus.training.checkpoint import (
    Checkpoint,
    checkpoint_files,
    drop_checkpoint,
    load_newest,
    load_weights,
    rng_state,
    save_checkpoint,
    set_rng_state,
    trained_weights,
)
from icarus.training.examples import Example, Fitted, Renderer, fit
from icarus.training.folder import RunFolder, identity_of
from icarus.training.loss import answer_loss, checkpoint_layers
from icarus.training.measure import mean_answer_loss
from icarus.training.output import save_adapter
from icarus.training.records import read_records
from icarus.training.schedule import learning_rate
from icarus.training.settings import TrainSettings


class DivergedError(IcarusError):
    """The loss or the gradient is not a number."""


@dataclass(frozen=True)
class StepFigures:
    """One step. All but `seconds` are the same in every run with these settings and data."""

    step: int
    """Counts from 1."""
    epoch: float
    loss: float
    """Nats an answer token."""
    learning_rate: float
    grad_norm: float
    tokens: int
    """Of prompts and answers, without padding."""
    answer_tokens: int
    seconds: float
    validation_loss: float | None = None


@dataclass(frozen=True)
class Observer:
    """Who is told how a run goes."""

    note: Callable[[str], None] = lambda line: None
    begin: Callable[[int, int], None] = lambda num_done, num_steps: None
    step: Callable[[StepFigures], None] = lambda figures: None


def train(
    settings: TrainSettings,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    observer: Observer | None = None,
) -> Path:
    """Trains one specialist and returns its folder, an ordinary PEFT one.

    Raises InvalidInputError and ConfigError for what cannot be trained, AlreadyExistsError for a folder that is taken,
    DivergedError when the loss is no number any more; the last checkpoint is kept then.
    """
    if resume and overwrite:
        raise InvalidInputError("--resume goes on with a run, --overwrite replaces it: give one of them")
    accelerator = Accelerator()
    observer = observer if observer and accelerator.is_main_process else Observer()
    model_folder = resolve_model(settings.model, observer.note)
    data = read_examples(settings.data, model_folder, settings, observer.note)
    validation = read_examples(settings.validation, model_folder, settings, observer.note).examples
    digest = base_digest(model_folder)
    model = add_lora(load_base(model_folder, settings.dtype, settings.max_length), settings)
    check_two_streams(model, min(data.examples, key=len))
    folder = RunFolder(out)
    identity = identity_of(settings, digest, accelerator.num_processes)
    if accelerator.is_main_process:
        folder.resume(identity) if resume else folder.start(identity, overwrite)
    accelerator.wait_for_everyone()
    run = Run(settings, model, data.examples, validation, folder, accelerator, observer)
    run.go()
    if accelerator.is_main_process:
        write_card(folder.path, settings, run.facts(data, identity["data_sha256"]))
        save_adapter(folder.path, model, AdapterMetadata(settings.adapter_mode, digest))
        folder.finish()
    accelerator.wait_for_everyone()
    return folder.path


def read_examples(path: str, model_folder: Path, settings: TrainSettings, note: Callable[[str], None]) -> Fitted:
    """The examples of a file that fit; none for no file. Raises InvalidInputError where none does."""
    if not path:
        return Fitted([], 0, 0)
    renderer = Renderer(model_folder)
    max_length = min(settings.max_length, renderer.context_length)
    records = read_records(path)
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
    return fitted


def count_steps(epochs: float, num_examples: int, step_size: int) -> int:
    """The last one may begin another epoch."""
    return math.ceil(epochs * num_examples / step_size)


class Run:
    """A model, its data and its optimiser, between two steps."""

    def __init__(
        self,
        settings: TrainSettings,
        model: PeftModel,
        examples: Sequence[Example],
        validation: Sequence[Example],
        folder: RunFolder,
        accelerator: Accelerator,
        observer: Observer,
    ):
        self._settings = settings
        self._examples = examples
        self._validation = validation
        self._folder = folder
        self._accelerator = accelerator
        self._observer = observer
        self._model = model
        self._weights = [weight for weight in model.parameters() if weight.requires_grad]
        if settings.gradient_checkpointing:
            checkpoint_layers(model)
        optimizer = torch.optim.AdamW(self._weights, betas=(0.9, 0.999), weight_decay=settings.weight_decay)
        prepared: Any = accelerator.prepare(answer_loss(model, settings.adapter_mode), optimizer)
        self._loss, self._optimizer = prepared
        step_size = settings.batch_size * settings.accumulation * accelerator.num_processes
        self._order = DataOrder(len(examples), step_size, settings.seed)
        self._epochs_per_step = step_size / len(examples)
        self.num_steps = settings.steps or count_steps(settings.epochs, len(examples), step_size)
        self._losses: list[float] = []
        self._validation_loss: float | None = None

    def go(self) -> None:
        """From the newest checkpoint, if there is one, to the end."""
        num_done = self._restore()
        self._observer.begin(num_done, self.num_steps)
        self._model.train()
        for step in range(num_done, self.num_steps):
            figures = self._step(step)
            checkpoint_due = (step + 1) % self._settings.save_every == 0 or step + 1 == self.num_steps
            if checkpoint_due and self._validation:
                figures = self._validate(figures)
            if self._accelerator.is_main_process:
                self._folder.append_log(dataclasses.asdict(figures))  # before the checkpoint: lines too many are cut
            if checkpoint_due:
                self._save(figures.step)
            self._losses.append(figures.loss)
            self._observer.step(figures)

    def facts(self, data: Fitted, data_sha256: str) -> RunFacts:
        last = self._losses[-max(len(self._losses) // 10, 1) :]
        return RunFacts(
            data_name=Path(self._settings.data).name,
            data_sha256=data_sha256,
            num_examples=len(data.examples),
            num_left_out=data.num_left_out,
            num_truncated=data.num_truncated,
            num_steps=self.num_steps,
            num_processes=self._accelerator.num_processes,
            num_weights=sum(weight.numel() for weight in self._weights),
            final_loss=sum(last) / max(len(last), 1),
            validation_loss=self._validation_loss,
        )

    def _step(self, step: int) -> StepFigures:
        started = time.perf_counter()
        examples = [self._examples[index] for index in self._order.step(step)]
        answer_tokens = sum(len(example.answer_ids) for example in examples)
        settings = self._settings
        rate = learning_rate(step, self.num_steps, settings.learning_rate, settings.warmup, settings.schedule)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        loss = self._accumulate(examples, answer_tokens)
        grad_norm = float(torch.nn.utils.clip_grad_norm_(self._weights, self._settings.max_grad_norm))
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            if self._accelerator.is_main_process:  # a checkpoint of the weights that it began with is no good one
                drop_checkpoint(self._folder.checkpoints, step)
            raise self._diverged(f"step {step + 1} has loss {loss:g} and gradient norm {grad_norm:g}")
        self._optimizer.step()
        self._optimizer.zero_grad()
        tokens = sum(map(len, examples))
        epoch = (step + 1) * self._epochs_per_step
        return StepFigures(step + 1, epoch, loss, rate, grad_norm, tokens, answer_tokens, time.perf_counter() - started)

    def _accumulate(self, examples: Sequence[Example], answer_tokens: int) -> float:
        """Gradients of the mean loss of all processes' answer tokens; returns that mean."""
        accelerator, settings = self._accelerator, self._settings
        passes = list(split_step(examples, settings.accumulation, accelerator.process_index, accelerator.num_processes))
        total = torch.zeros((), device=accelerator.device)
        for index, batch in enumerate(passes):
            batch = batch.to(accelerator.device)
            with accelerator.no_sync(self._loss) if index + 1 < len(passes) else nullcontext():
                loss = self._loss(batch.input_ids, batch.positions, batch.labels)
                # Gradients are averaged over processes; this makes it their sum.
                accelerator.backward(loss * (accelerator.num_processes / answer_tokens))
            total += loss.detach()
        return float(accelerator.reduce(total, reduction="sum")) / answer_tokens  # pyright: ignore[reportArgumentType]

    def _diverged(self, what: str) -> DivergedError:
        files = []
        if self._accelerator.is_main_process:
            files = checkpoint_files(self._folder.checkpoints)
        way_on = (
            f"{files[-1]} is kept: go on from it with --resume and a lower --learning-rate"
            if files
            else "there is no good checkpoint: start over with --overwrite and a lower --learning-rate"
        )
        return DivergedError(f"{what}: the training diverged. {way_on}")

    def _validate(self, figures: StepFigures) -> StepFigures:
        loss = self._accelerator.unwrap_model(self._loss)
        self._validation_loss = mean_answer_loss(loss, self._validation, self._settings.batch_size)
        if not math.isfinite(self._validation_loss):
            raise self._diverged(f"after step {figures.step} the validation loss is {self._validation_loss:g}")
        return dataclasses.replace(figures, validation_loss=self._validation_loss)

    def _save(self, num_steps_done: int) -> None:
        rng = gather_object([rng_state()])
        if self._accelerator.is_main_process:
            weights = {name: weight.cpu() for name, weight in trained_weights(self._model).items()}
            save_checkpoint(
                self._folder.checkpoints, Checkpoint(num_steps_done, weights, self._optimizer.state_dict(), rng)
            )

    def _restore(self) -> int:
        """How many steps are done already."""
        checkpoint = load_newest(self._folder.checkpoints)
        num_done = checkpoint.num_steps_done if checkpoint else 0
        if checkpoint:
            load_weights(self._model, checkpoint.weights)
            self._optimizer.load_state_dict(checkpoint.optimizer)
            set_rng_state(checkpoint.rng[self._accelerator.process_index])
            self._observer.note(f"going on after step {num_done} of {self.num_steps}")
        if self._accelerator.is_main_process:
            done = self._folder.cut_log(num_done)
            self._losses = [line["loss"] for line in done]
            self._validation_loss = done[-1]["validation_loss"] if done else None
        return num_done
