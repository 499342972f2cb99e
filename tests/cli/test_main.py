"""Exit codes and the one line that a mistake gets."""

import subprocess
import sys
import time

import pytest

from icarus.cli import main as cli
from icarus.cli import models
from icarus.cli.output_file import writable
from icarus.errors import ConfigError, OverloadedError

BLOCK_TORCH = "import sys; sys.modules['torch'] = None; sys.argv[0] = 'icarus'\n"
"""What a machine without torch does: importing it raises ModuleNotFoundError."""


def run_python(code, *argv, **options):
    return subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=60, check=False, **options
    )


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["serve", "decode", "--help"],
        ["serve", "gateway", "--help"],
        ["up", "--help"],
        ["demo", "--help"],
        ["generate", "--help"],
        ["models", "--help"],
        ["train", "--help"],
        ["eval", "--help"],
        ["bench", "--help"],
        ["bench", "agents", "--help"],
        ["--version"],
    ],
)
def test_help_of_every_command(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 0 and "icarus" in capsys.readouterr().out


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom icarus.cli.main import main\n"
        "try: main(['serve', 'prefill', '--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'grpc', 'numpy', 'transformers', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    answer = run_python(code)
    assert answer.returncode == 0, answer.stderr


def test_client_commands_import_no_torch():
    code = "import sys, icarus.cli.generate, icarus.cli.models, icarus.cli.up, icarus.cli.serve\n"
    answer = run_python(code + "sys.exit('torch' in sys.modules)")
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["COMMAND"]),
        (["fly"], ["fly"]),
        (["serve", "decode", "--cache-num-block", "3"], ["--cache-num-block"]),
        (["serve", "decode", "--cache-num-blocks", "many"], ["--cache-num-blocks", "many"]),
        (["serve", "gateway", "--config", "/nowhere/icarus.toml"], ["/nowhere/icarus.toml"]),
        (["up", "--num-decode", "0"], ["--num-decode is 0; it must be at least 1"]),
        (["up", "--num-prefill", "-1"], ["--num-prefill is -1; it must be at least 0"]),
        (["generate", "hi", "--max-tokens", "x"], ["--max-tokens"]),
        (["generate", "hi", "--colour"], ["--colour", "'icarus generate --help'"]),
        (["bench", "transfer", "--colour"], ["--colour", "'icarus bench transfer --help'"]),
        (["chat", "--logprobs", "3"], ["--logprobs", "'icarus chat --help'"]),
        (["chat", "--session", "s1", "--system", "be brief"], ["--system", "not allowed with", "--session"]),
        (["bench", "transfer", "--json", "."], ["--json .", "Is a directory"]),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(argv, words, capsys):
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("icarus: error: ")
    assert all(word in err for word in words)


@pytest.mark.parametrize(
    ("error", "code"), [(ConfigError("bad"), 2), (OverloadedError("full"), 1), (KeyboardInterrupt(), 130)]
)
def test_exit_codes(error, code, capsys, monkeypatch):
    def fail(args):
        raise error

    monkeypatch.setattr(models, "run", fail)
    assert cli.main(["models"]) == code
    assert capsys.readouterr().err == (f"icarus: error: {error}\n" if code != 130 else "")


def test_a_bug_keeps_its_traceback(monkeypatch):
    def fail(args):
        raise RuntimeError("ours")

    monkeypatch.setattr(models, "run", fail)
    with pytest.raises(RuntimeError):
        cli.main(["models"])


def test_a_missing_extra_is_named():
    code = BLOCK_TORCH + "from icarus.cli.main import main; sys.exit(main(['serve', 'decode']))"
    answer = run_python(code)
    assert answer.returncode == 2
    advice = "in a checkout, pip install -c constraints.txt '.[engine]'"
    assert answer.stderr == f"icarus: error: this needs torch: {advice}\n"


@pytest.mark.parametrize("argv", [["eval", "--oracle", "--metric", "exact"], ["train", "--out", "o"]])
def test_training_has_an_extra_of_its_own(argv, tmp_path):
    data = tmp_path / "d.jsonl"
    data.write_text('{"prompt": "a", "completion": "x"}\n')
    code = "import sys; sys.modules['transformers'] = None; from icarus.cli.main import main; sys.exit(main())"
    answer = run_python(code, *argv, "--data", str(data))
    assert answer.returncode == 2 and "'.[train]'" in answer.stderr


def test_a_process_ends_when_its_parents_pipe_closes():
    code = (
        "import threading, time, sys\nfrom icarus.cli.serve import _stop_with_stdin\n"
        "threading.Thread(target=_stop_with_stdin, daemon=True).start()\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    time.sleep(0.2)
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(10) == -15
    process.stdout.close()


def test_a_file_for_figures_that_never_came_is_not_left(tmp_path):
    new, old = tmp_path / "new", tmp_path / "old"
    old.write_text("before")
    for file in (new, old):
        with pytest.raises(OverloadedError), writable("--json", str(file)):
            assert file.exists()
            raise OverloadedError("full")
    assert not new.exists() and old.read_text() == "before"
