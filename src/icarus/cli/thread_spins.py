"""How idle compute threads wait: OpenMP takes that from the environment alone, and before torch is loaded."""

import os

from icarus.config import EngineSection

_SPINS, _POLICY = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"


def set_thread_spins(engine: EngineSection) -> None:
    """What the user's environment says comes first."""
    if _POLICY not in os.environ:
        os.environ.setdefault(_SPINS, str(engine.thread_spins))
