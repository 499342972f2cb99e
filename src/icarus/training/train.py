"""`icarus train`: from settings to a specialist's folder."""

from pathlib import Path

from icarus.adapters.metadata import AdapterMetadata
from icarus.errors import InvalidInputError
from icarus.model.digest import base_digest
from icarus.model.hub import resolve_model
from icarus.training.adapter_folder import save_adapter
from icarus.training.card import write_card
from icarus.training.data import load_examples
from icarus.training.folder import RunFolder, identity_of
from icarus.training.lora_model import add_lora, check_two_streams, load_base
from icarus.training.observer import Observer
from icarus.training.processes import join_processes
from icarus.training.run import TrainingRun
from icarus.training.settings import TrainSettings


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
    accelerator = join_processes()
    observer = observer if observer and accelerator.is_main_process else Observer()
    model_folder = resolve_model(settings.model, observer.note)
    data = load_examples(settings.data, model_folder, settings, observer.note)
    validation = load_examples(settings.validation, model_folder, settings, observer.note)
    digest = base_digest(model_folder)
    model = add_lora(load_base(model_folder, settings.dtype, settings.max_length), settings)
    check_two_streams(model, min(data.examples, key=len))
    folder = RunFolder(out)
    identity = identity_of(settings, data, validation, digest, accelerator.num_processes)
    if accelerator.is_main_process:
        folder.resume(identity, observer.note) if resume else folder.start(identity, overwrite)
    accelerator.wait_for_everyone()
    run = TrainingRun(settings, model, data.examples, validation.examples, folder, accelerator, observer)
    run.go()
    if accelerator.is_main_process:
        write_card(folder.path, settings, run.facts(data))
        save_adapter(folder.path, model, AdapterMetadata(settings.adapter_mode, digest))
        folder.finish()
    accelerator.wait_for_everyone()
    return folder.path
