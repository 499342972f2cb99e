"""`icarus health` and `icarus pull`: what probes and one-shot set-up services call."""

from concurrent.futures import ThreadPoolExecutor

import grpc
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


def test_pull_that_fails_leaves_nothing(model, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for source, target in ((tmp_path / "none", tmp_path / "volume" / "x"), (model, tmp_path / "file" / "x")):
        assert main(["pull", str(source), str(target)]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"icarus: error: model '{source}'") and err.count("\n") == 1
    assert not (tmp_path / "volume").exists()
