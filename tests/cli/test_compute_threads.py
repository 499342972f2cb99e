import os
import subprocess
import sys

import pytest

from icarus.cli.compute_threads import parse_cpus, set_up_threads
from icarus.config import EngineSection
from icarus.errors import ConfigError


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": "7"}),
        ({"GOMP_SPINCOUNT": "3"}, {"GOMP_SPINCOUNT": "3"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_the_environment_wins(monkeypatch, environment, expected):
    monkeypatch.setattr(os, "environ", environment)
    set_up_threads(EngineSection(thread_spins=7))
    assert environment == expected


def test_cpus_as_taskset_has_them():
    assert parse_cpus("3") == {3}
    assert parse_cpus("0-2, 5,7-7") == {0, 1, 2, 5, 7}


@pytest.mark.parametrize("text", ["a", "1-", "-1", "3-1", "0,,1", "0-2-4", "0x1"])
def test_what_is_no_list_of_cpus_is_refused_by_name(text):
    with pytest.raises(ConfigError, match=r"\[engine\] cpus: .* is no CPU"):
        parse_cpus(text)


def test_a_cpu_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"cpus: 8000-8001 of '8000-8001' are none of the CPUs .*, \d"):
        set_up_threads(EngineSection(cpus="8000-8001"))


def test_a_bound_process_computes_on_its_cpus_alone():
    cpu = max(os.sched_getaffinity(0))
    program = (
        "from icarus.cli.compute_threads import set_up_threads; from icarus.config import EngineSection; import os\n"
        f"set_up_threads(EngineSection(cpus='{cpu}'))\n"
        "import torch; print(os.sched_getaffinity(0), torch.get_num_threads())"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split("\n")[0] == f"{{{cpu}}} 1"
