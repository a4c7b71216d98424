"""LoopLag: how late the event loop is, which is how late everything is."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from kernelpool.tasks import Tasks
from kernelpool.telemetry.observer import Observer

INTERVAL = 0.5


class LoopLag:
    """An async context manager that looks twice a second."""

    def __init__(self, observer: Observer, interval: float = INTERVAL) -> None:
        self._observer = observer
        self._interval = interval
        self._tasks = Tasks("event loop lag")

    async def __aenter__(self) -> Self:
        self._tasks.spawn(self._look(), "look")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._tasks.aclose()

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + self._interval
            await asyncio.sleep(self._interval)
            self._observer.lagged(max(0.0, loop.time() - due))
