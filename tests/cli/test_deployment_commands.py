"""`icarus health` and `icarus pull`: what probes and one-shot set-up services call."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import ClassVar

import grpc
import huggingface_hub
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from icarus.cli.main import main


@pytest.fixture
def server():
    """(address, its health servicer)"""
    server, servicer = grpc.server(ThreadPoolExecutor(1)), health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", servicer
    server.stop(0).wait()


def test_health(server, capsys):
    address, servicer = server
    for status, code in (("SERVING", 0), ("NOT_SERVING", 1)):
        servicer.set("", health_pb2.HealthCheckResponse.ServingStatus.Value(status))
        assert main(["health", address]) == code
        assert capsys.readouterr().out == f"{address} {status}\n"


@pytest.mark.parametrize("timeout", ["inf", "1e12"])
def test_health_without_a_limit(server, timeout, capsys):
    address, _ = server
    assert main(["health", address, "--timeout", timeout]) == 0, capsys.readouterr().err


def test_health_where_nobody_listens(capsys):
    assert main(["health", "127.0.0.1:1"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("icarus: error: 127.0.0.1:1: UNAVAILABLE") and err.count("\n") == 1


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").symlink_to(folder / "config.json")  # as in the hub's cache
    return folder


def test_pull_makes_a_whole_folder_once(model, tmp_path, capsys):
    target = tmp_path / "volume" / "owner" / "name"
    assert main(["pull", str(model), str(target)]) == 0
    assert {path.name for path in target.iterdir()} == {"config.json", "tokenizer.json"}
    assert not (target / "tokenizer.json").is_symlink() and [*target.parent.iterdir()] == [target]
    (model / "config.json").unlink()
    assert main(["pull", str(model), str(target)]) == 0, "what is there is kept, and the source not looked at"
    assert "has a model already" in capsys.readouterr().out


class Hub:
    """What the hub's client does of it: files appear in the folder, beside notes of its own, or it breaks off."""

    sha = "c0ffee" + 34 * "0"
    files: ClassVar = ["config.json", "model-1.safetensors", "model-2.safetensors", "README.md"]

    def __init__(self):
        self.calls: list[dict] = []
        self.num_files_before_trouble = 99
        self._look_into_cache = huggingface_hub.snapshot_download

    def HfApi(self):
        return self

    def model_info(self, hub_id):
        return SimpleNamespace(sha=self.sha, siblings=[SimpleNamespace(rfilename=name) for name in self.files])

    def snapshot_download(self, hub_id, revision, allow_patterns, local_dir=None, local_files_only=False):
        if local_files_only:
            return self._look_into_cache(
                hub_id, revision=revision, allow_patterns=allow_patterns, local_files_only=True
            )
        assert local_dir is not None
        self.calls.append({name: (local_dir / name).exists() for name in self.files})
        (local_dir / ".cache" / "huggingface").mkdir(parents=True, exist_ok=True)
        for name in self.files[:3][: self.num_files_before_trouble]:
            (local_dir / name).write_text("{}")
        if self.num_files_before_trouble == 0:
            raise OSError("503")
        return str(local_dir)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """What this user has of owner/name: nothing yet."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--owner--name"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(Hub.sha)
    return folder / "snapshots" / Hub.sha


@pytest.fixture
def hub(hub_cache, monkeypatch):
    hub = Hub()
    for name in ("HfApi", "snapshot_download"):
        monkeypatch.setattr(f"huggingface_hub.{name}", getattr(hub, name))
    return hub


def test_pull_downloads_beside_the_folder_and_copies_nothing(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("shutil.copytree", None)
    target = tmp_path / "volume" / "owner" / "name"
    assert main(["pull", "owner/name", str(target)]) == 0
    assert {path.name for path in target.iterdir()} == {*hub.files[:3]} and [*target.parent.iterdir()] == [target]
    assert not (tmp_path / "home").exists()


def test_pull_goes_on_where_the_last_one_broke_off(hub, tmp_path, capsys):
    target, hub.num_files_before_trouble = tmp_path / "volume" / "name", 2
    assert main(["pull", "owner/name", str(target)]) == 2
    assert "'owner/name' cannot be fetched: model-2.safetensors did not come; try again" in capsys.readouterr().err
    hub.num_files_before_trouble = 0
    assert main(["pull", "owner/name", str(target)]) == 2
    assert "503" in capsys.readouterr().err and not target.exists()
    hub.num_files_before_trouble = 99
    assert main(["pull", "owner/name", str(target)]) == 0
    assert [sum(call.values()) for call in hub.calls] == [0, 2, 2] and [*target.parent.iterdir()] == [target]


def test_two_pulls_of_one_model_are_one_download(hub, tmp_path):
    target = tmp_path / "volume" / "name"
    with ThreadPoolExecutor() as threads:
        assert [*threads.map(lambda _: main(["pull", "owner/name", str(target)]), range(4))] == [0] * 4
    assert len(hub.calls) == 1 and [*target.parent.iterdir()] == [target]


def test_pull_copies_what_the_hub_cache_has(hub, hub_cache, tmp_path):
    hub_cache.mkdir(parents=True)
    for name in hub.files[:3]:
        (hub_cache / name).write_text("{}")
    assert main(["pull", "owner/name", str(tmp_path / "volume" / "name")]) == 0
    assert {path.name for path in (tmp_path / "volume" / "name").iterdir()} == {*hub.files[:3]} and not hub.calls


def test_pull_downloads_where_the_hub_cache_lacks_a_file(hub, hub_cache, tmp_path):
    hub_cache.mkdir(parents=True)
    (hub_cache / "config.json").write_text("{}")
    assert main(["pull", "owner/name", str(tmp_path / "name")]) == 0
    assert len(hub.calls) == 1 and {path.name for path in (tmp_path / "name").iterdir()} == {*hub.files[:3]}


def test_pull_offline_copies_what_can_be_served_from_the_hub_cache(hub_cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub_cache.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        (hub_cache / name).write_text("{}")
    assert main(["pull", "owner/name", str(tmp_path / "name")]) == 2, "it has no weights"
    assert "'owner/name' cannot be fetched" in capsys.readouterr().err and not (tmp_path / "name").exists()
    (hub_cache / "model.safetensors").write_text("")
    assert main(["pull", "owner/name", str(tmp_path / "name")]) == 0
    assert len([*(tmp_path / "name").iterdir()]) == 3


def test_pull_of_what_the_hub_has_not_leaves_nothing(hub_cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda self, hub_id: 1 / 0)
    assert main(["pull", "owner/name", str(tmp_path / "volume" / "name")]) == 2
    assert "'owner/name' cannot be fetched" in capsys.readouterr().err and not [*(tmp_path / "volume").iterdir()]


def test_pull_that_fails_leaves_nothing(model, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for source, target in ((tmp_path / "none", tmp_path / "volume" / "x"), (model, tmp_path / "file" / "x")):
        assert main(["pull", str(source), str(target)]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"icarus: error: model '{source}'") and err.count("\n") == 1
    assert not (tmp_path / "volume").exists()
