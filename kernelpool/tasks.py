"""Background tasks that have an owner: when the owner is gone, so are they."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Coroutine
from contextlib import suppress
from contextvars import Context
from typing import Any, TypeVar

from kernelpool.errors import KernelpoolError

log = logging.getLogger(__name__)
R = TypeVar("R")


async def finish(work: Awaitable[R]) -> R:
    """To its end, even when the caller is cancelled meanwhile: it is clearing up, and has a limit of its own."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.shield(task)
    return task.result()


class Tasks:
    """The tasks of one owner. Unlike a TaskGroup, one that fails takes nobody along, and any task may close it."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._tasks: set[asyncio.Task[Any]] = set()

    def __repr__(self) -> str:
        return f"<Tasks of {self._owner} [{len(self._tasks)} running]>"

    def spawn(self, work: Coroutine[Any, Any, R], name: str, *, apart: bool = False) -> asyncio.Task[R]:
        """`apart`: it outlives whoever starts it, so what it logs does not belong to their request."""
        context = Context() if apart else None
        task = asyncio.create_task(work, name=f"{self._owner}: {name}", context=context)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    async def wait(self, timeout: float) -> None:
        """Until all have finished, or the time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._tasks:
                    await asyncio.wait(set(self._tasks))

    async def aclose(self, grace: float = 0.0) -> None:
        """Lets them finish for `grace` seconds, then cancels the rest and waits for their clean-up."""
        if grace and self._tasks:
            await asyncio.wait(self._tasks, timeout=grace)
        while self._tasks:  # a task may spawn another one while it ends
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        # Our own errors are for whoever awaits the task; anything else is a bug that nobody may be waiting for.
        if error is not None and not isinstance(error, KernelpoolError):
            log.error("background task failed", extra={"task": task.get_name()}, exc_info=error)
