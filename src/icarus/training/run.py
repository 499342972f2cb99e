"""The training loop. What a step sees and does depends on the settings and the step's number alone."""

import dataclasses
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from peft import PeftModel

from icarus.errors import IcarusError
from icarus.training.batches import DataOrder, split_step
from icarus.training.card import RunFacts
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
from icarus.training.data import Fitted
from icarus.training.examples import Example
from icarus.training.folder import RunFolder
from icarus.training.loss import answer_loss, checkpoint_layers
from icarus.training.mean_loss import mean_answer_loss
from icarus.training.observer import Observer, StepFigures
from icarus.training.schedule import learning_rate
from icarus.training.settings import TrainSettings


class DivergedError(IcarusError):
    """The loss or the gradient is not a number."""


def count_steps(epochs: float, num_examples: int, step_size: int) -> int:
    """The last one may begin another epoch."""
    return math.ceil(epochs * num_examples / step_size)


class TrainingRun:
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

    def facts(self, data: Fitted) -> RunFacts:
        last = self._losses[-max(len(self._losses) // 10, 1) :]
        return RunFacts(
            data_name=Path(self._settings.data).name,
            data_sha256=data.sha256,
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
        """How many steps are done already. What the main process reads holds for all: no other need have the folder."""
        is_main = self._accelerator.is_main_process
        (checkpoint,) = broadcast_object_list([load_newest(self._folder.checkpoints) if is_main else None])
        num_done = checkpoint.num_steps_done if checkpoint else 0
        if checkpoint:
            load_weights(self._model, checkpoint.weights)
            self._optimizer.load_state_dict(checkpoint.optimizer)
            set_rng_state(checkpoint.rng[self._accelerator.process_index])
            self._observer.note(f"going on after step {num_done} of {self.num_steps}")
        if is_main:
            done = self._folder.cut_log(num_done)
            self._losses = [line["loss"] for line in done]
            self._validation_loss = done[-1]["validation_loss"] if done else None
        return num_done
