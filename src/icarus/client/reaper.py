"""Where streams that were dropped are let go: never where the collector found them."""

import queue
import threading
import weakref
from collections.abc import Callable

Action = Callable[[], None]


class Reaper:
    """Does what it is given, in order, in a thread of its own.

    The collector runs at any moment, in any thread, even where that thread holds one of gRPC's locks: a call made there
    would wait for it forever.
    """

    def __init__(self) -> None:
        self._actions: queue.SimpleQueue[Action | None] = queue.SimpleQueue()  # the one that finalizers may put into
        self._thread = threading.Thread(target=_work, args=(self._actions,), name="icarus-reaper", daemon=True)
        self._thread.start()
        self._end = weakref.finalize(self, self._actions.put, None)
        self._end.atexit = False

    def put(self, action: Action) -> None:
        self._actions.put(action)

    def close(self) -> None:
        """Waits until everything is done that was put."""
        self._end()
        self._thread.join()


def _work(actions: "queue.SimpleQueue[Action | None]") -> None:
    while (action := actions.get()) is not None:
        action()
        del action  # it holds the call
