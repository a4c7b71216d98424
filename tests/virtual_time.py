"""Virtual time: the clock of the event loop jumps to the next timer as soon as nothing else is left to do.

A test may then wait for hours: `await asyncio.sleep(3600)` returns at once, after everything that was to happen within
that hour has happened. Only for code that waits for timers, tasks and threads; sockets have a time of their own, but
for Unix sockets with both ends in the loop: what was sent is there before the loop looks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast


@contextmanager
def virtual_time() -> Iterator[None]:
    """For the running loop. Puts the real clock back at the end."""
    loop = cast("Any", asyncio.get_running_loop())
    clock = _Clock(loop._selector.select, loop.run_in_executor, loop.time())
    loop.time = lambda: clock.now
    loop._selector.select = clock.select
    loop.run_in_executor = clock.run_in_executor
    try:
        yield
    finally:
        for place, name in ((loop, "time"), (loop._selector, "select"), (loop, "run_in_executor")):
            delattr(place, name)


class _Clock:
    def __init__(self, select: Callable[..., Any], run_in_executor: Callable[..., Any], now: float) -> None:
        self.now = now
        self._select = select
        self._run_in_executor = run_in_executor
        self._threads = 0

    def select(self, timeout: float | None) -> Any:
        if timeout is None or timeout <= 0 or self._threads:
            # While a thread works no time passes; its end wakes the selector.
            return self._select(None if self._threads and timeout != 0 else timeout)
        events = self._select(0)
        if not events:
            self.now += timeout
        return events

    def run_in_executor(self, executor: Any, work: Callable[..., Any], *args: Any) -> Any:
        future = self._run_in_executor(executor, work, *args)
        self._threads += 1
        future.add_done_callback(self._thread_done)
        return future

    def _thread_done(self, _: object) -> None:
        self._threads -= 1
