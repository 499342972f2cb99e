"""The loop: it learns, it can be interrupted anywhere, and what it writes is what is served."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from oracle import shared_logits
from peft import PeftModel
from peft.utils import save_and_load
from ports import free_address
from safetensors.torch import load_file
from tiny import load_reference
from torch.nn import functional as F

from icarus.adapters.metadata import read_metadata
from icarus.adapters.peft_folder import load_peft_folder
from icarus.cli.train import serving_command
from icarus.errors import AlreadyExistsError, ConfigError, IcarusError, InvalidInputError
from icarus.model.config import ModelConfig
from icarus.model.digest import base_digest
from icarus.training import run as run_module
from icarus.training.examples import Renderer
from icarus.training.lora_model import add_lora, load_base
from icarus.training.loss import answer_loss
from icarus.training.mean_loss import mean_answer_loss
from icarus.training.observer import Observer
from icarus.training.records import read_records
from icarus.training.run import DivergedError
from icarus.training.train import train
from icarus.types import AdapterMode


class Stopped(BaseException):
    """Stands for the process's sudden end."""


class StopAfter(Observer):
    def __init__(self, last):
        self._last = last

    def step(self, figures):
        if figures.step == self._last:
            raise Stopped


class Notes(StopAfter):
    """Remembers what it was told."""

    def __init__(self, last):
        super().__init__(last)
        self.lines = []

    def note(self, line):
        self.lines.append(line)


def curve(folder):
    """Every logged figure but the time."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.mark.parametrize("mode", ["icarus", "conventional"])
def test_it_learns_and_the_folder_is_served(settings, base, data, tmp_path, mode):
    folder = train(settings(mode=mode, steps=30, accumulation=1, validation=str(data), save_every=15), tmp_path / "out")
    losses = [line["loss"] for line in curve(folder)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert not (folder / "checkpoints").exists()
    config = ModelConfig.from_folder(base)
    digest = base_digest(base)
    weights = load_peft_folder(folder, "x", None, config.linear_shapes, config.num_layers, digest, torch.float32, "cpu")
    assert weights.mode is (AdapterMode.SHARED if mode == "icarus" else AdapterMode.PRIVATE)
    assert {module for _, module in weights.modules} == set(settings(mode=mode).target_modules)
    metadata = read_metadata(folder)
    assert metadata is not None and metadata.base_digest == digest
    tensors = load_file(folder / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    card = (folder / "README.md").read_text()
    assert "20 examples" in card and "rank, alpha, dropout | 4, 8, 0" in card and digest not in card


def test_what_is_trained_is_what_is_served(settings, base, data, tmp_path):
    """Plain peft loads the folder; the oracle's logits give the loss that the training code computes."""
    folder = train(settings(), tmp_path / "out")
    model = PeftModel.from_pretrained(load_reference(base), str(folder))
    renderer = Renderer(base)
    examples = [renderer.example(record) for record in read_records(data)]
    total = 0.0
    for example in examples:
        logits = shared_logits(model, [*example.prompt_ids, *example.answer_ids])[len(example.prompt_ids) - 1 : -1]
        total += F.cross_entropy(logits, torch.tensor(example.answer_ids), reduction="sum").item()
    expected = total / sum(len(example.answer_ids) for example in examples)
    assert mean_answer_loss(answer_loss(model, AdapterMode.SHARED), examples, 3) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_last_bit(settings, tmp_path, stop):
    changes = {"dropout": 0.1, "gradient_checkpointing": stop == 3}
    whole = train(settings(**changes), tmp_path / "whole")
    with pytest.raises(Stopped):
        train(settings(**changes), tmp_path / "cut", observer=StopAfter(stop))
    cut = train(settings(**changes), tmp_path / "cut", resume=True)
    assert curve(cut) == curve(whole) and len(curve(whole)) == 6
    assert (cut / "adapter_model.safetensors").read_bytes() == (whole / "adapter_model.safetensors").read_bytes()


def test_bfloat16_trains_float32_weights(settings, tmp_path):
    folder = train(settings(dtype="bfloat16", steps=12), tmp_path / "out")
    losses = [line["loss"] for line in curve(folder)]
    assert sum(losses[-3:]) < sum(losses[:3])
    with pytest.raises(Stopped):
        train(settings(dtype="bfloat16"), tmp_path / "cut", observer=StopAfter(2))
    (file,) = (tmp_path / "cut" / "checkpoints").glob("*.pt")
    state = torch.load(file, weights_only=True)
    assert {weight.dtype for weight in state["weights"].values()} == {torch.float32}


def test_accumulation_does_not_change_the_curve(settings, tmp_path):
    one = curve(train(settings(batch_size=4, accumulation=1), tmp_path / "one"))
    four = curve(train(settings(batch_size=1, accumulation=4), tmp_path / "four"))
    for a, b in zip(one, four, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(settings, tmp_path, monkeypatch):
    good = run_module.TrainingRun._accumulate

    def spoil(run, examples, answer_tokens):
        spoil.calls += 1
        return good(run, examples, answer_tokens) if spoil.calls < 4 else float("nan")

    spoil.calls = 0
    monkeypatch.setattr(run_module.TrainingRun, "_accumulate", spoil)
    with pytest.raises(DivergedError, match="step 4 has loss nan"):
        train(settings(), tmp_path / "out")
    assert [file.name for file in (tmp_path / "out" / "checkpoints").iterdir()] == ["step-000002.pt"]
    assert len(curve(tmp_path / "out")) == 3 and not (tmp_path / "out" / "adapter_model.safetensors").exists()
    monkeypatch.setattr(run_module.TrainingRun, "_accumulate", good)
    train(settings(learning_rate=5e-3), tmp_path / "out", resume=True)
    assert [line["learning_rate"] > 5e-3 for line in curve(tmp_path / "out")] == [True, True, *[False] * 4]
    assert json.loads((tmp_path / "out" / "train.json").read_text())["learning_rate"] == 5e-3


def test_a_validation_loss_that_is_no_number_stops(settings, data, tmp_path, monkeypatch):
    losses = iter([1.0, float("nan")])
    monkeypatch.setattr(run_module, "mean_answer_loss", lambda *args: next(losses))
    with pytest.raises(DivergedError, match=r"after step 4 the validation loss is nan.*step-000002\.pt is kept"):
        train(settings(validation=str(data)), tmp_path / "out")
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_an_epoch_has_no_step_too_many():
    """1 / (16 / 784) is a little more than 49 in floating point."""
    assert run_module.count_steps(1.0, 784, 16) == 49 and run_module.count_steps(1.0, 785, 16) == 50


def test_a_rate_that_is_far_too_high_leaves_no_checkpoint(settings, tmp_path):
    """The one after the first step has finite weights, of which the second step shows that they are no good."""
    with pytest.raises(DivergedError, match=r"step 2 .* no good checkpoint: start over with --overwrite"):
        train(settings(learning_rate=1e30, warmup=0.0, max_grad_norm=1e30, save_every=1), tmp_path / "out")
    assert not list((tmp_path / "out" / "checkpoints").iterdir())


def test_a_folder_that_is_taken(settings, tmp_path):
    with pytest.raises(Stopped):
        train(settings(), tmp_path / "out", observer=StopAfter(3))
    with pytest.raises(AlreadyExistsError, match=r"--resume.*--overwrite"):
        train(settings(), tmp_path / "out")
    with pytest.raises(InvalidInputError, match=r"rank 4, this command 8"):
        train(settings(rank=8), tmp_path / "out", resume=True)
    train(settings(steps=2), tmp_path / "out", overwrite=True)
    with pytest.raises(AlreadyExistsError, match="finished"):
        train(settings(steps=2), tmp_path / "out", resume=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(AlreadyExistsError, match="not made by icarus train"):
        train(settings(), tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "letter.txt").exists()


def test_what_is_published_is_not_about_this_machine(settings, base, tmp_path, monkeypatch):
    """Nor is the hub asked what the base is."""
    asked = []
    monkeypatch.setattr(save_and_load, "check_file_exists_on_hf_hub", lambda *args, **kwargs: asked.append(args))
    with pytest.raises(Stopped):
        train(settings(), tmp_path / "out", observer=StopAfter(3))
    (tmp_path / "moved").symlink_to(base)
    monkeypatch.chdir(tmp_path / "moved")
    folder = train(settings(model="."), tmp_path / "out", resume=True)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == base.name
    assert f"| base | {base.name} |" in (folder / "README.md").read_text()
    for file in folder.iterdir():
        assert str(base.parent).encode() not in file.read_bytes() and str(tmp_path).encode() not in file.read_bytes()
    assert not asked


def test_a_card_names_data_whose_name_is_no_text(settings, data, tmp_path):
    odd = tmp_path / "caf\udce9.jsonl"
    odd.write_bytes(data.read_bytes())
    folder = train(settings(data=str(odd), steps=1), tmp_path / "out")
    assert "`caf\\udce9.jsonl`, 20 examples" in (folder / "README.md").read_text()


def test_data_from_a_pipe_have_their_hash(settings, data, tmp_path):
    """As of `--data <(zcat train.jsonl.gz)`, whose file is empty for whoever opens it again."""
    with subprocess.Popen(["cat", data], stdout=subprocess.PIPE) as cat:
        assert cat.stdout is not None
        folder = train(settings(data=f"/dev/fd/{cat.stdout.fileno()}", steps=1), tmp_path / "out")
    sha256 = hashlib.sha256(data.read_bytes()).hexdigest()
    assert json.loads((folder / "train.json").read_text())["data_sha256"] == sha256
    assert f"SHA-256 `{sha256}`" in (folder / "README.md").read_text()


def test_a_folder_behind_a_link_is_overwritten(settings, tmp_path):
    link, target = tmp_path / "link", tmp_path / "target"
    target.mkdir()
    link.symlink_to(target)
    train(settings(steps=2), link)
    train(settings(steps=1), link, overwrite=True)
    assert link.is_symlink() and len(curve(target)) == 1


class FullDisk(Observer):
    """Whatever is written for a checkpoint finds no room."""

    def __init__(self, checkpoints):
        self._checkpoints = checkpoints

    def begin(self, num_done, num_steps):
        self._checkpoints.mkdir()
        (self._checkpoints / "partial").symlink_to("/dev/full")


def test_a_checkpoint_without_room_is_named(settings, tmp_path):
    checkpoints = tmp_path / "out" / "checkpoints"
    with pytest.raises(IcarusError, match=f"{checkpoints}/step-000002.pt cannot be written: No space left"):
        train(settings(), tmp_path / "out", observer=FullDisk(checkpoints))


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", "mixed precision is bf16.*--mixed_precision no; --dtype"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "8", "gradient accumulation is 8.*--accumulation"),
    ],
)
def test_what_accelerate_would_change_is_refused(settings, tmp_path, monkeypatch, name, value, reason):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=reason):
        train(settings(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_processes_that_share_the_model_are_refused(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(ConfigError, match=r"distributed type is FSDP.*--multi_gpu"):
        train(settings(), tmp_path / "out")


def test_resuming_with_other_token_ids_is_noted(base, settings, tmp_path):
    """Data and weights are the same; the template, which is neither, says another date."""
    model = shutil.copytree(base, tmp_path / "model")
    template = model / "chat_template.jinja"
    source = template.read_text()
    template.write_text("Monday" + source)
    with pytest.raises(Stopped):
        train(settings(model=str(model)), tmp_path / "out", observer=StopAfter(2))
    template.write_text("Tuesday" + source)
    with pytest.raises(Stopped):
        train(settings(model=str(model)), tmp_path / "out", resume=True, observer=(noted := Notes(4)))
    assert [line for line in noted.lines if "other token ids than before" in line]
    train(settings(model=str(model)), tmp_path / "out", resume=True, observer=(again := Notes(-1)))
    assert not [line for line in again.lines if "other token ids" in line]


def test_what_peft_asks_of_a_base_is_no_warning(settings, base):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        add_lora(load_base(base, "float32", 0), settings())
    assert not [warning for warning in seen if "gradient_checkpointing" in str(warning.message)]


def test_a_specialist_is_served_with_the_base_that_it_was_trained_on():
    assert serving_command("smollm2", Path("a b")) == "icarus up --worker-adapters 'NAME=a b'"
    assert serving_command("models/x", Path("a")) == "icarus up --model-path models/x --worker-adapters NAME=a"


def as_of_two_processes(folder):
    """A run of one process under way, as two that split its passes would have left it."""
    identity = json.loads((folder / "train.json").read_text())
    identity |= {"batch_size": identity["batch_size"] // 2, "num_processes": 2}
    (folder / "train.json").write_text(json.dumps(identity))
    for file in (folder / "checkpoints").iterdir():
        state = torch.load(file, weights_only=True)
        torch.save(state | {"rng": 2 * state["rng"]}, file)


@pytest.mark.parametrize("resume", [False, True])
def test_two_processes_train_as_one(settings, base, data, tmp_path, resume):
    """accelerate over gloo: the same examples a step, split. The second has a folder of its own, as on a machine of
    its own."""
    whole = settings(batch_size=4, accumulation=1, steps=3)
    alone = curve(train(whole, tmp_path / "alone"))
    if resume:
        with pytest.raises(Stopped):
            train(whole, tmp_path / "0", observer=StopAfter(3))
        as_of_two_processes(tmp_path / "0")
    command = [sys.executable, "-m", "icarus.cli.main", "train", "--model", str(base), "--data", str(data)]
    command += ["--dtype", "float32", "--rank", "4", "--learning-rate", "0.01", "--batch-size", "2"]
    command += ["--accumulation", "1", "--steps", "3", "--save-every", "2", *(["--resume"] if resume else [])]
    host, port = free_address().split(":")
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": host, "MASTER_PORT": port}
    group |= {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [*command, "--out", str(tmp_path / rank)], env={**os.environ, **group, "RANK": rank, "LOCAL_RANK": rank}
        )
        for rank in "01"
    ]
    try:
        assert [process.wait(timeout=200) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    for a, b in zip(alone, curve(tmp_path / "0"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["tokens"] == b["tokens"]
