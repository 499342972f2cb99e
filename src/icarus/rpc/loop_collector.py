"""Metrics of state that exists already, read when it is asked for: nothing is counted twice."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 3.0
"""Less than a scrape's own limit, its interval of 5 s: what a hung loop lacks is then seen (IcarusGatewayHangs)."""


class LoopCollector(Collector):
    """Collects on the event loop that owns the state, for a scrape on another thread. Made on that loop.

    `read` must not wait for long: a scrape gives up after some seconds and lacks these metrics then.
    """

    def __init__(self, read: Callable[[], Coroutine[Any, Any, list[Metric]]]):
        self._loop = asyncio.get_running_loop()
        self._read = read

    def collect(self) -> Iterable[Metric]:
        reading = asyncio.run_coroutine_threadsafe(self._read(), self._loop)
        try:
            return reading.result(TIMEOUT_SECONDS)
        except TimeoutError:
            reading.cancel()
            log.warning("the event loop did not answer a scrape for %g s", TIMEOUT_SECONDS)
            return []
