"""Asks of a backend what the peer's workload.py asks: its Result, its command line, its results file. Times nothing."""

import argparse
import asyncio
import importlib
import json
from dataclasses import dataclass, field


@dataclass
class Result:
    model: str = ""
    prompt_len: int = 0
    cached: int = 0
    t_submit: float = 0.0
    t_end: float = 0.0
    tokens: list = field(default_factory=list)
    t_tokens: list = field(default_factory=list)


async def play(backend, models) -> dict:
    """Two turns over one new context, then the first one again after a reset."""
    await backend.reset_cache()
    before = await backend.counters()
    first = await backend.generate(models[0], list(range(100, 148)), 4)
    second = await backend.generate(models[-1], [*range(100, 148), *first.tokens], 4)
    await backend.reset_cache()
    again = await backend.generate(models[0], list(range(100, 148)), 4)
    after = await backend.counters()
    assert again.tokens == first.tokens and first.t_submit < first.t_tokens[0] <= first.t_tokens[-1] <= first.t_end
    return {
        "cached": [first.cached, second.cached, again.cached],
        "computed": after["computed"] - before["computed"],
        "preempt": after["preempt"],
    }


async def main() -> None:
    parser = argparse.ArgumentParser()
    for flag in ("--backend", "--url", "--label", "--server-pid", "--out"):
        parser.add_argument(flag)
    parser.add_argument("jobs", nargs="+")
    args = parser.parse_args()
    module, name = args.backend.split(":")
    async with getattr(importlib.import_module(module), name)(args.url) as backend:
        for job in args.jobs:
            kind, model = job.split(":")[:2]
            played = await play(backend, ["a0", "a7"] if model in ("mix", "multi") else [model])
            rates = dict.fromkeys(("tok_s", "decode_tok_s", "out_tok_s"), 8.0)
            times = dict.fromkeys(("lat50", "lat95", "lat95_t2plus", "ttft50"), 0.5)
            with open(args.out, "a") as out:
                line = {"bench": kind, "quiet_start": True, "hit": 0.5, **rates, **times, "played": played}
                out.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
