"""README.md of an adapter: what it was trained on, how, and how good it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from icarus.errors import InvalidInputError
from icarus.model.hub import published_name
from icarus.training.settings import TrainSettings

_FILE_NAME = "README.md"
_SCORES = "## Scores\n"
_NO_SCORES = "None yet: `icarus eval --card` adds them.\n"
_HOW = {
    "icarus": "It reads the KV cache of the frozen base model and never writes it (ICaRus), so all such specialists of "
    "one base share one cache.",
    "conventional": "It is an ordinary LoRA with a KV cache of its own.",
}


@dataclass(frozen=True)
class RunFacts:
    """What a run was, besides its settings."""

    data_name: str
    data_sha256: str
    num_examples: int
    num_left_out: int
    num_truncated: int
    num_steps: int
    num_processes: int
    num_weights: int
    final_loss: float
    """Mean over the last tenth of the steps, in nats an answer token."""
    validation_loss: float | None


def card_file(folder: str | Path) -> Path:
    return Path(folder) / _FILE_NAME


def write_card(folder: Path, settings: TrainSettings, facts: RunFacts) -> None:
    step_size = settings.batch_size * settings.accumulation * facts.num_processes
    base = published_name(settings.model)
    recipe = {
        "base": base,
        "mode": settings.mode,
        "targets": ", ".join(settings.target_modules),
        "rank, alpha, dropout": f"{settings.rank}, {settings.lora_alpha:g}, {settings.dropout:g}",
        "weights": f"{facts.num_weights:,}, saved in bfloat16",
        "optimiser": f"AdamW 0.9/0.999, weight decay {settings.weight_decay:g}, clipped to {settings.max_grad_norm:g}",
        "learning rate": f"{settings.learning_rate:g}, {settings.schedule}, warm-up {settings.warmup:.0%}",
        "steps": f"{facts.num_steps} of {step_size} examples",
        "precision": f"base {settings.dtype}, LoRA float32 in training",
        "seed": str(settings.seed),
    }
    left_out = f"; {facts.num_left_out} longer than {settings.max_length} tokens left out" if facts.num_left_out else ""
    truncated = f"; {facts.num_truncated} prompts cut at their beginning" if facts.num_truncated else ""
    loss = f"Training loss at the end: {facts.final_loss:.4f} nats an answer token."
    if facts.validation_loss is not None:
        loss += f" Validation loss: {facts.validation_loss:.4f}."
    note = f"{settings.data_note}\n\n" if settings.data_note else ""
    _write(
        card_file(folder),
        f"---\nbase_model: {base}\nlibrary_name: peft\ntags: [lora, icarus]\n---\n\n"
        f"# {folder.resolve().name}\n\nA LoRA specialist trained by `icarus train`. {_HOW[settings.mode]}\n\n"
        f"## Data\n\n{note}`{facts.data_name}`, {facts.num_examples:,} examples{left_out}{truncated}; "
        f"SHA-256 `{facts.data_sha256}`.\n\n"
        f"## Recipe\n\n{_table(recipe)}\n{loss}\n\n{_SCORES}\n{_NO_SCORES}",
    )


def add_score(folder: Path, line: str) -> None:
    """Puts a line at the end of the scores, which are the end of the card, unless it is there already. A card of
    another's making gets their heading first. Raises InvalidInputError for one that is not UTF-8."""
    file = card_file(folder)
    try:
        text = (file.read_text(encoding="utf-8") if file.is_file() else "") or f"# {folder.resolve().name}"
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{file} is not UTF-8 at byte {error.start}, so no score can be added to it") from None
    if not text.endswith("\n"):
        text += "\n"
    if _SCORES not in text.splitlines(keepends=True):
        text += f"\n{_SCORES}\n"
    entry = f"- {line}\n"
    if entry not in text:
        _write(file, text.replace(_NO_SCORES, "") + entry)


def _write(file: Path, text: str) -> None:
    """It may hold names of files, which need be no text."""
    file.write_text(text, encoding="utf-8", errors="backslashreplace")


def _table(rows: Mapping[str, str]) -> str:
    return "| | |\n| --- | --- |\n" + "".join(f"| {name} | {value} |\n" for name, value in rows.items())
