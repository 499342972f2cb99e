"""The gateway, the client and the start of the command line run on the light install: torch is never reached."""

import subprocess
import sys
from importlib.metadata import requires

import pytest

# Imports a package and all its modules, with what the light install lacks out of reach; even an attempt is a failure.
PROGRAM = """
import importlib, pkgutil, sys

name, heavy = sys.argv[1], set(sys.argv[2:])
attempts = []

class Blocker:
    def find_spec(self, module, path=None, target=None):
        if module.partition(".")[0] in heavy:
            attempts.append(module)
            raise ImportError(f"{module} is not part of the light install")

sys.meta_path.insert(0, Blocker())
root = importlib.import_module(name)
for module in pkgutil.walk_packages(getattr(root, "__path__", ()), f"{name}."):
    importlib.import_module(module.name)
loaded = sorted(module for module in sys.modules if module.partition(".")[0] in heavy)
sys.exit(f"{name} imported {loaded}, tried {attempts}" if loaded or attempts else 0)
"""
HEAVY = (
    "torch",
    "numpy",
    "safetensors",
    "nixl",
    "transformers",
    "gguf",
    "triton",
    "peft",
    "icarus_kernels",
    "opentelemetry",
)


def import_lightly(name: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, name, *HEAVY]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("name", ["icarus_gateway", "icarus.client", "icarus.rpc", "icarus.cli.main"])
def test_imports_nothing_heavy(name):
    run = import_lightly(name)
    assert run.returncode == 0, run.stderr


def test_the_check_sees_a_heavy_import():
    run = import_lightly("icarus.model.two_stream")
    assert run.returncode != 0 and "torch is not part of the light install" in run.stderr


def test_the_light_install_declares_nothing_heavy():
    base = [requirement for requirement in requires("icarus-serve") or () if "extra ==" not in requirement]
    assert base and not [requirement for requirement in base if requirement.startswith(HEAVY)]
