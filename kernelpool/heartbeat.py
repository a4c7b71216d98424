"""Heartbeat: lets every agent of a pool hear that there is a gateway, and finds the sandboxes that fell silent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Self

from kernelpool.agents import pulse
from kernelpool.errors import TryLater
from kernelpool.life import LiveSession
from kernelpool.pool.launcher import Connected
from kernelpool.pool.pool import WarmPool
from kernelpool.sessions import Sessions
from kernelpool.tasks import Tasks

log = logging.getLogger(__name__)

AT_ONCE = 8


class Heartbeat:
    """An async context manager that beats each `interval` seconds, a fraction of the agents' lease."""

    def __init__(self, interval: float, warm: WarmPool[Connected], sessions: Sessions) -> None:
        self._interval = interval
        self._warm = warm
        self._sessions = sessions
        self._quickened = asyncio.Event()
        self._tasks = Tasks(f"heartbeat {warm.name}")

    async def __aenter__(self) -> Self:
        self._tasks.spawn(self._beat(), "beat")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._tasks.aclose()

    def quicken(self, interval: float) -> None:
        """Never slower: what was started before goes by the lease that it was given."""
        self._interval = min(self._interval, interval)
        self._quickened.set()

    async def _beat(self) -> None:
        while True:
            await self._pause()
            gate = asyncio.Semaphore(AT_ONCE)
            async with asyncio.TaskGroup() as group:
                for item in self._warm.ready:
                    group.create_task(_check(partial(self._check_ready, item), gate))
                for live in self._sessions:
                    group.create_task(_check(partial(self._check_session, live), gate))

    async def _pause(self) -> None:
        """Until the next beat is due, by the interval as it is by then."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            self._quickened.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(began + self._interval):
                    await self._quickened.wait()
                    continue
            return

    async def _check_ready(self, item: Connected) -> None:
        if await pulse(item.agent, tries=1) is None:
            self._warm.discard_ready(item, "does not answer")

    async def _check_session(self, live: LiveSession) -> None:
        if live.ended is None and await pulse(live.agent) is None:
            await self._sessions.lost(live, "its sandbox fell silent", is_certain=True)


async def _check(check: Callable[[], Awaitable[None]], gate: asyncio.Semaphore) -> None:
    """One that fails must not keep the others from being checked."""
    async with gate:
        try:
            await check()
        except TryLater as error:
            log.warning("sandbox could not be checked", extra={"error": str(error)})
        except Exception as error:
            log.error("sandbox could not be checked", exc_info=error)
