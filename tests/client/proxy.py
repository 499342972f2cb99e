"""A TCP proxy with the bad habits of real ones: it drops connections, with a word or without, idle or busy."""

import asyncio
import threading
import time
from typing import Self

from ports import free_address


class Proxy:
    """Listens on `address` and passes bytes on to `target`, in a thread of its own. `connections` counts them.

    A connection over which nothing came for `idle_seconds` is closed. Bytes take `delay_seconds`, each way.
    """

    def __init__(self, target: str, idle_seconds: float | None = None, delay_seconds: float = 0.0):
        self.connections = 0
        self.address = free_address()  # its own while it refuses, too
        self._host, _, self._port = target.rpartition(":")
        self._idle_seconds = idle_seconds
        self._delay_seconds = delay_seconds
        self._open: set[asyncio.StreamWriter] = set()
        self._links: set[asyncio.Task[None]] = set()
        self._silent: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._listen())
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.refuse()
        self._run(self._finish())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def cut(self) -> None:
        """Resets every connection."""
        self._run(self._reset())

    def refuse(self) -> None:
        """Resets every connection and takes no new one."""
        self._run(self._close())

    def reopen(self) -> None:
        """Ends `refuse`."""
        self._run(self._listen())

    def silence(self) -> None:
        """Forgets every connection without a word to either side: their bytes go nowhere from now on."""
        self._run(self._forget())

    def _run(self, work) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, *self.address.split(":"))

    async def _reset(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _close(self) -> None:
        self._server.close()
        await self._reset()

    async def _forget(self) -> None:
        self._silent |= self._links

    async def _finish(self) -> None:
        await asyncio.gather(*self._links, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        link = asyncio.current_task()
        assert link is not None
        self._links.add(link)
        self._open.add(writer)
        try:
            far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
            self._open.add(far_writer)
            last = [time.monotonic()]
            pumps = [self._pump(reader, far_writer, link, last), self._pump(far_reader, writer, link, last)]
            await self._until_one_ends([*pumps, self._watch(last)])
            far_writer.transport.abort()
            self._open.discard(far_writer)
        finally:
            writer.transport.abort()
            self._open.discard(writer)
            self._links.discard(link)

    async def _until_one_ends(self, work) -> None:
        tasks = [asyncio.ensure_future(each) for each in work]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _pump(self, reader, writer, link, last) -> None:
        while data := await reader.read(65536):
            last[0] = time.monotonic()
            await asyncio.sleep(self._delay_seconds)
            if link not in self._silent:
                writer.write(data)
                await writer.drain()

    async def _watch(self, last) -> None:
        while self._idle_seconds is None or time.monotonic() - last[0] < self._idle_seconds:
            await asyncio.sleep(0.05)
