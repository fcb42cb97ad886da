"""An event loop in a thread of its own, for connections that outlive a call."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


class Background:
    """Runs coroutines in one thread, also while the trainer computes in another."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self._thread.start()

    async def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Await ``work`` from any event loop; cancelling the caller cancels it."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.loop))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for ``work`` from another thread; Ctrl-C there cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result()
        finally:
            future.cancel()  # does nothing to work that has ended

    def close(self) -> None:
        """Cancel what still runs and end the thread."""
        if self.loop.is_closed():
            return

        async def cancel() -> None:
            tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self.run(cancel())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@cache
def background(name: str) -> Background:
    """The event loop of this name in this process; it lasts as long as the process."""
    return Background(name)


# A forked child has no thread that runs the loops of its parent.
os.register_at_fork(after_in_child=background.cache_clear)
