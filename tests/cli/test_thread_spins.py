import os

import pytest

from icarus.cli.thread_spins import set_thread_spins
from icarus.config import EngineSection


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
    set_thread_spins(EngineSection(thread_spins=7))
    assert environment == expected
