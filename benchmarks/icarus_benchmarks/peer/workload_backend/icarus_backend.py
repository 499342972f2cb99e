"""Icarus as the peer's `workload.py` asks for a server: generate, counters, reset_cache.

That script imports this module by name, from a folder of its own so that nothing else of ours is in its way.
"""

import importlib
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Self

from icarus.client import AsyncClient


class IcarusBackend:
    """`url` is the gateway's host:port."""

    def __init__(self, url: str):
        self._address = url
        self._result = importlib.import_module("workload").Result
        self._totals: Counter[str] = Counter()
        self._num_resets = 0

    async def __aenter__(self) -> Self:
        self._client = AsyncClient(self._address, tenant="workload-0")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._client.close()

    async def generate(self, model: str, prompt_ids: Sequence[int], max_tokens: int) -> Any:
        """A greedy turn of exactly `max_tokens`."""
        result = self._result(model=model, prompt_len=len(prompt_ids))
        result.t_submit = time.perf_counter()
        stream = self._client.generate(
            model, token_ids=prompt_ids, max_tokens=max_tokens, temperature=0.0, ignore_eos=True
        )
        async for delta in stream:
            result.t_tokens += [time.perf_counter()] * len(delta.token_ids)
            result.tokens += delta.token_ids
        result.t_end = time.perf_counter()
        usage = stream.usage
        assert usage is not None and len(result.tokens) == max_tokens, (len(result.tokens), max_tokens)
        assert usage.prompt_tokens == result.prompt_len, (usage.prompt_tokens, result.prompt_len)
        result.cached = usage.cached_tokens
        self._totals.update(queries=usage.prompt_tokens, hits=usage.cached_tokens, computed=usage.computed_tokens)
        return result

    async def counters(self) -> dict[str, int]:
        """Cumulative. The tokens as turns reported them, once a turn."""
        workers = (await self._client.cluster()).workers
        totals = {name: self._totals[name] for name in ("queries", "hits", "computed")}
        return {**totals, "prompt": totals["queries"], "preempt": sum(worker.preemptions for worker in workers)}

    async def reset_cache(self) -> None:
        """Goes on as another tenant, who finds nothing; what is there is evicted first."""
        await self._client.close()
        self._num_resets += 1
        self._client = AsyncClient(self._address, tenant=f"workload-{self._num_resets}")
