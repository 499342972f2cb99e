"""Which settings each process and command reads: these become its flags."""

from icarus.cli.flags import ALL, Sections
from icarus.types import Role

_PLACEMENT = ("prefill_threshold_tokens", "load_penalty_tokens", "adapter_penalty_tokens")

WORKER: Sections = {"model": ALL, "cache": ALL, "engine": ALL, "transfer": ALL, "worker": ALL, "metrics": ALL}
GATEWAY: Sections = {"model": ALL, "transfer": ("stage_timeout_seconds",), "gateway": ALL, "metrics": ALL}
UP: Sections = {
    **WORKER,
    "worker": ("adapters", "adapter_root", "other_base_adapters", "max_resident_adapters"),
    "gateway": ALL,
}
DEMO: Sections = {"model": ALL, "cache": ALL, "engine": ALL, "transfer": ALL, "gateway": _PLACEMENT}
EVAL: Sections = {"model": ("name", "dtype", "device"), "cache": ALL, "engine": ALL}
BENCH_ENGINE: Sections = {"model": ALL, "cache": ("block_size",), "engine": ALL}
BENCH_AGENTS: Sections = {**BENCH_ENGINE, "transfer": ALL, "gateway": _PLACEMENT}
BENCH_PEER: Sections = {**BENCH_AGENTS, "model": ("dtype", "device")}


def of_process(role: str) -> Sections:
    """Of `icarus serve ROLE`."""
    return WORKER if role in tuple(Role) else GATEWAY
