"""How many calls a server has under way at once."""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any

from grpc_health.v1 import health

from icarus.errors import OverloadedError
from icarus.rpc.handlers import Around, SurroundingInterceptor


class CallLimitInterceptor(SurroundingInterceptor):
    """Calls beyond `max_calls` raise OverloadedError, which names `setting`, where the limit was set.

    Health checks do not count: whoever restarts a process that fails them would do so because it is busy. Neither do
    the `exempt` methods, such as "icarus.v1.GenerationService/CancelTurn". A call counts once its request is there;
    `most_open` bounds what gRPC holds open besides.
    """

    def __init__(self, max_calls: int, setting: str, exempt: Collection[str] = ()):
        self._max_calls = max_calls
        self._setting = setting
        self._exempt = {*exempt, f"{health.SERVICE_NAME}/Check"}
        self.most_open = 2 * max_calls
        self.num_calls = 0
        """Under way now, of those that count."""

    def around(self, method: str) -> Around | None:
        return None if method in self._exempt else self._counted

    @asynccontextmanager
    async def _counted(self, _: Any) -> AsyncIterator[None]:
        if self.num_calls >= self._max_calls:
            raise OverloadedError(
                f"as many calls are under way as {self._setting} allows ({self._max_calls}); try again"
            )
        self.num_calls += 1
        try:
            yield
        finally:
            self.num_calls -= 1
