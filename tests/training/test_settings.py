"""What the command line refuses, with the reason."""

import pytest

from icarus.cli import main as cli
from icarus.cli.parser import build_parser
from icarus.cli.train_flags import read_settings
from icarus.errors import InvalidInputError
from icarus.training.settings import TrainSettings


@pytest.mark.parametrize("target", ["k_proj", "v_proj", "qkv_proj"])
def test_a_target_that_changes_the_cache_is_refused(target):
    with pytest.raises(InvalidInputError, match=f"{target} would change the KV cache"):
        TrainSettings(targets=("q_proj", target))
    assert TrainSettings(targets=("q_proj", target), mode="conventional").target_modules == ("q_proj", target)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mode": "both"}, "--mode is one of"),
        ({"rank": 0}, "--rank is 0"),
        ({"rank": 257}, "--rank is 257; it must be at most 256, the highest that is served"),
        ({"learning_rate": float("nan")}, "--learning-rate is nan"),
        ({"warmup": 1.0}, "--warmup"),
        ({"steps": -1}, "--steps"),
        ({"alpha": float("inf")}, "--alpha is inf"),
        ({"seed": 1 << 32}, "--seed is 4294967296"),
        ({"data_note": "caf\udce9"}, "--data-note is not UTF-8 at character 4"),
        ({"targets": ("lm_head",)}, "cannot be served"),
    ],
)
def test_settings_out_of_range(changes, reason):
    with pytest.raises(InvalidInputError, match=reason):
        TrainSettings(**changes)


def test_flags_make_settings():
    argv = [
        "train",
        "--data",
        "d",
        "--out",
        "o",
        "--targets",
        "q_proj",
        "o_proj",
        "--truncate",
        "--learning-rate",
        "3e-3",
    ]
    settings = read_settings(build_parser().parse_args(argv))
    assert settings == TrainSettings(data="d", targets=("q_proj", "o_proj"), truncate=True, learning_rate=3e-3)
    assert read_settings(build_parser().parse_args(["train", "--data", "d", "--out", "o"])) == TrainSettings(data="d")


def test_the_command_says_why(base, data, tmp_path, capsys):
    argv = ["train", "--model", str(base), "--data", str(data), "--out", str(tmp_path / "o"), "--targets", "k_proj"]
    assert cli.main(argv) == 2
    assert "would change the KV cache" in capsys.readouterr().err
    assert cli.main([*argv[:-1], "x_proj"]) == 2
    assert "target 'x_proj' is no linear projection of model" in capsys.readouterr().err
    assert cli.main([*argv[:-1], "mlp"]) == 2
    assert "target 'mlp' is no linear projection of model" in capsys.readouterr().err
    assert cli.main([*argv[:-2], "--max-length", "5"]) == 2
    assert "no example fits into 5 tokens" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
