"""Heartbeat: lets every agent of a pool hear that there is a gateway, and finds the sandboxes that fell silent."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Self

from kernelpool.agents import Agent
from kernelpool.errors import AgentFault, SandboxLost
from kernelpool.life import LiveSession
from kernelpool.models import AgentStatus
from kernelpool.pool.launcher import Connected
from kernelpool.pool.pool import WarmPool
from kernelpool.sessions import Sessions
from kernelpool.tasks import Tasks

log = logging.getLogger(__name__)

ANSWER_SECONDS = 10.0
TRIES = 3
"""For a session: its variables are worth some patience. A ready sandbox gets one: another is as good."""
PAUSE_SECONDS = 5.0
AT_ONCE = 8


async def pulse(agent: Agent, tries: int = TRIES) -> AgentStatus | None:
    """What the agent says of itself; None when it does not answer, or not as an agent does."""
    for attempt in range(tries):
        if attempt:
            await asyncio.sleep(PAUSE_SECONDS)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await agent.status()
        except (SandboxLost, AgentFault, TimeoutError) as error:
            log.debug("agent did not answer", extra={"attempt": attempt, "error": str(error)})
    return None


class Heartbeat:
    """An async context manager that beats each `interval` seconds, a fraction of the agents' lease."""

    def __init__(self, interval: float, warm: WarmPool[Connected], sessions: Sessions) -> None:
        self._interval = interval
        self._warm = warm
        self._sessions = sessions
        self._tasks = Tasks(f"heartbeat {warm.name}")

    async def __aenter__(self) -> Self:
        self._tasks.spawn(self._beat(), "beat")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._tasks.aclose()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            gate = asyncio.Semaphore(AT_ONCE)
            async with asyncio.TaskGroup() as group:
                for item in self._warm.ready:
                    group.create_task(self._check_ready(item, gate))
                for live in self._sessions:
                    group.create_task(self._check_session(live, gate))

    async def _check_ready(self, item: Connected, gate: asyncio.Semaphore) -> None:
        async with gate:
            if await pulse(item.agent, tries=1) is None:
                self._warm.discard_ready(item, "does not answer")

    async def _check_session(self, live: LiveSession, gate: asyncio.Semaphore) -> None:
        async with gate:
            if live.ended is None and await pulse(live.agent) is None:
                await self._sessions.lost(live, "its sandbox fell silent")
