"""GET /metrics over HTTP, for Prometheus to scrape."""

import logging
from typing import Self

from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics, start_http_server

from icarus.rpc.listen import cannot_listen

log = logging.getLogger(__name__)


def make_registry() -> CollectorRegistry:
    """A registry of this process's own, with `process_*` (memory, CPU, descriptors) in it."""
    disable_created_metrics()
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry


class MetricsServer:
    """Answers on threads of its own from entering to leaving. An empty address serves nothing.

    `address` is `host:port`, as settings have it (port 0 takes a free one). Entering raises ConfigError where it cannot
    be listened on.
    """

    def __init__(self, address: str, registry: CollectorRegistry):
        self.address = address
        self._registry = registry
        self._server = None

    def __enter__(self) -> Self:
        if self.address:
            host, _, port = self.address.rpartition(":")
            try:
                self._server, _ = start_http_server(int(port), host.strip("[]"), self._registry)
            except (OSError, OverflowError) as error:
                raise cannot_listen(self.address, "[metrics] address", error) from None
            self.address = f"{host}:{self._server.server_port}"
            log.info("serving metrics", extra={"url": f"http://{self.address}/metrics"})
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
