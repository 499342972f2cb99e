"""A benchmark that a time limit ends."""

import os
import signal
import tempfile

import pytest

from icarus.cli.main import main


@pytest.fixture
def sigterm_does_nothing():
    previous = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    signal.signal(signal.SIGTERM, previous)


def test_one_that_is_stopped_leaves_nothing_behind(tmp_path, monkeypatch, sigterm_does_nothing):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def stopped_with_half_a_model(*_: object) -> None:
        (tmp_path / os.listdir(tmp_path)[0] / "half a model").write_bytes(b"weights")
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("icarus_benchmarks.model_folder.write_random_model", stopped_with_half_a_model)
    with pytest.raises(SystemExit) as ended:
        main(["bench", "engine", "--random-weights=smollm2-135m", "--engine-num-threads=1"])
    assert ended.value.code == 128 + signal.SIGTERM
    assert not os.listdir(tmp_path)
