"""Files on disk: shards, digests, what is missing."""

import os
import shutil
import stat
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from icarus.cache.kv import KVPool
from icarus.errors import ConfigError
from icarus.model import loading
from icarus.model.batch import RowPlan, StepBatch
from icarus.model.digest import base_digest
from icarus.model.loading import load_model
from icarus.model.weight_files import weight_files
from icarus.model.weights import StoredTensors


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tiny.tiny_llama(tmp_path_factory.mktemp("whole"), tie=False, seed=3)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    return tiny.tiny_llama(tmp_path_factory.mktemp("sharded"), tie=False, seed=3, max_shard_size="100KB")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "icarus"


def logits(folder, dtype="float32"):
    model = load_model(folder, dtype)
    pool = KVPool(model.config, 4, 4, dtype, "cpu")
    return model.forward(StepBatch.build([RowPlan([5, 6, 7], 0, 3, False, True, [2])], 4, "cpu"), pool)


def test_sharded_is_the_same_model(whole, sharded):
    assert len(weight_files(whole)) == 1 and len(weight_files(sharded)) > 2
    assert base_digest(whole) == base_digest(sharded)
    assert torch.equal(logits(whole), logits(sharded))


def test_a_single_file_beside_shards_is_what_counts(whole, sharded, tmp_path):
    """As in transformers, which trains on it."""
    both = shutil.copytree(sharded, tmp_path / "both")
    shutil.copy(whole / "model.safetensors", both)
    assert weight_files(both) == [both / "model.safetensors"]


def test_half_precisions_are_near(whole):
    expected = logits(whole)
    for dtype, tolerance in (("bfloat16", 0.05), ("float16", 0.005)):
        got = logits(whole, dtype)
        assert got.dtype == torch.float32
        assert (got - expected).abs().max() < tolerance * expected.abs().max()


def test_progress_counts_every_tensor(sharded):
    seen = []
    load_model(sharded, "float32", progress=lambda done, total: seen.append((done, total)))
    count = len(StoredTensors(sharded, torch.float32, "cpu").names)
    assert seen == [(i + 1, count) for i in range(count)]


def test_loading_on_a_gpu_holds_the_weights_and_about_one_layer(whole, monkeypatch):
    """There `pack_linear` keeps what it is given."""
    read: list[weakref.ref[torch.Tensor]] = []
    kept: list[torch.Tensor] = []
    peak = 0

    def read_and_watch(self: StoredTensors, name: str, read_one=StoredTensors.read) -> torch.Tensor:
        tensor = read_one(self, name)
        read.append(weakref.ref(tensor))
        return tensor

    def keep(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Callable[[torch.Tensor], torch.Tensor]:
        nonlocal peak
        kept.append(weight)
        alive = [*kept, *(tensor for ref in read if (tensor := ref()) is not None)]
        peak = max(peak, sum({tensor.data_ptr(): tensor.nbytes for tensor in alive}.values()))
        return partial(torch.nn.functional.linear, weight=weight, bias=bias)

    monkeypatch.setattr(StoredTensors, "read", read_and_watch)
    monkeypatch.setattr(loading, "pack_linear", keep)
    model = load_model(whole, "float32")
    sizes = {name: tensor.nbytes for name, tensor in load_file(whole / "model.safetensors").items()}
    layer = sum(size for name, size in sizes.items() if ".layers.0." in name)
    assert model.device.type == "cpu" and peak < sum(sizes.values()) + layer


def test_weights_of_the_serving_dtype_are_mapped(whole):
    stored = StoredTensors(whole, torch.float32, "cpu")
    tensors = [stored.read(name) for name in stored.names]
    lines = Path("/proc/self/maps").read_text().splitlines()
    maps = [line.split() for line in lines if line.endswith("model.safetensors")]
    ranges = [tuple(int(end, 16) for end in fields[0].split("-")) for fields in maps]
    for tensor in tensors:
        assert any(low <= tensor.data_ptr() < high for low, high in ranges)


def test_digest_is_of_the_content(whole, tmp_path, cache):
    folder = shutil.copytree(whole, tmp_path / "copy")
    first = base_digest(folder)
    assert first == base_digest(whole)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].clone()
    tensors["model.norm.weight"][3] += 1
    save_file(tensors, file)
    os.utime(file, ns=(1, 1))
    assert base_digest(folder) != first


def test_digest_is_of_the_shapes(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "copy")
    file, name = folder / "model.safetensors", "model.layers.0.mlp.up_proj.weight"
    tensors = load_file(file)
    save_file(tensors | {name: tensors[name].reshape(tensors[name].shape[::-1])}, file)
    assert base_digest(folder) != base_digest(whole)


def test_digest_is_remembered(whole, cache):
    digest = base_digest(whole)
    (entry,) = (cache / "digests").iterdir()
    assert entry.read_text() == digest
    entry.write_text("remembered")
    assert base_digest(whole) == "remembered"


def test_a_remembered_digest_is_for_every_user(whole, cache):
    before = os.umask(0o022)
    try:
        base_digest(whole)
    finally:
        os.umask(before)
    (entry,) = (cache / "digests").iterdir()
    assert stat.S_IMODE(entry.stat().st_mode) == 0o644


def test_digest_needs_no_cache(whole, cache, monkeypatch):
    digest = base_digest(whole)
    (entry,) = (cache / "digests").iterdir()
    entry.unlink()
    entry.mkdir()  # so that it can be neither read nor replaced, whoever runs this
    assert base_digest(whole) == digest
    assert list(entry.parent.iterdir()) == [entry]
    monkeypatch.setenv("XDG_CACHE_HOME", str(whole / "config.json"))
    assert base_digest(whole) == digest, "where no folder can be made"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert base_digest(whole) == digest


def test_digest_sees_a_file_whose_size_and_time_are_restored(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "copy")
    digest, file = base_digest(folder), folder / "model.safetensors"
    before = file.stat()
    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x7f")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert base_digest(folder) != digest


def test_what_is_never_read_changes_no_digest(tmp_path):
    """Older files carry the frequencies of RoPE, and some the lm_head of a model that is tied."""
    folder = tiny.tiny_llama(tmp_path / "model", tie=True)
    digest, expected = base_digest(folder), logits(folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    more = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    save_file(tensors | more | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, file)
    assert base_digest(folder) == digest and torch.equal(logits(folder), expected)


@pytest.mark.parametrize(
    "name",
    ["lm_head.weight_scale", "model.layers.0.self_attn.q_proj.bias", "model.layers.3.mlp.up_proj.weight", "lm_head.q"],
)
def test_tensors_that_nothing_reads_are_refused(whole, tmp_path, name):
    folder = shutil.copytree(whole, tmp_path / "copy")
    save_file(load_file(whole / "model.safetensors") | {name: torch.ones(8)}, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=f"has 1 tensors that .* does not read, {name} for one"):
        load_model(folder, "float32")


@pytest.mark.parametrize(("dtype", "stored"), [(torch.float8_e4m3fn, "F8_E4M3"), (torch.int8, "I8")])
def test_quantised_tensors_are_refused(whole, tmp_path, dtype, stored):
    folder, name = shutil.copytree(whole, tmp_path / "copy"), "model.layers.1.mlp.up_proj.weight"
    tensors = load_file(whole / "model.safetensors")
    save_file(tensors | {name: tensors[name].to(dtype)}, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=f"tensor {name} is stored as {stored}; quantized"):
        load_model(folder, "float32")


def test_values_that_the_dtype_cannot_hold(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "copy")
    tensors = load_file(whole / "model.safetensors")
    tensors["model.norm.weight"][3] = 1e5
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=r"model\.norm\.weight has values beyond float16"):
        load_model(folder, "float16")
    load_model(folder, "bfloat16")


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.safetensors", lambda f: f.unlink(), "lacks model.safetensors"),
        ("model.safetensors", lambda f: f.write_bytes(f.read_bytes()[:-100]), "model.safetensors cannot be read"),
        ("model.safetensors", lambda f: f.write_bytes(b"version https://git-lfs"), "model.safetensors cannot be read"),
        ("model.safetensors.index.json", lambda f: f.write_text("[]"), "is not a safetensors index"),
    ],
)
def test_damaged_files(whole, sharded, tmp_path, name, damage, message):
    folder = shutil.copytree(whole if name == "model.safetensors" else sharded, tmp_path / "copy")
    damage(folder / name)
    with pytest.raises(ConfigError, match=message):
        load_model(folder, "float32")
    with pytest.raises(ConfigError):
        base_digest(folder)


def test_missing_and_misshapen_tensors(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "copy")
    tensors = load_file(whole / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if n != "lm_head.weight"}, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=r"lacks tensor lm_head\.weight"):
        load_model(folder, "float32")
    save_file(tensors | {"model.norm.weight": torch.ones(5)}, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=r"model\.norm\.weight is \[5\], config\.json makes it \[64\]"):
        load_model(folder, "float32")


def test_a_device_without_room_is_named(whole, monkeypatch):
    monkeypatch.setattr(loading, "_build", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no room")))
    with pytest.raises(ConfigError, match=r"model .* in float32 does not fit on device 'cpu': stop what else fills it"):
        load_model(whole, "float32")


def test_unknown_dtype(whole):
    with pytest.raises(ConfigError, match="int8"):
        load_model(whole, "int8")


@pytest.mark.parametrize("device", ["cuda:1", "mps", ""])
def test_unknown_device(whole, device):
    with pytest.raises(ConfigError, match=f"device '{device}' is not supported; supported are cpu, cuda"):
        load_model(whole, "float32", device)
