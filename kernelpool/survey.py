"""Survey: how the pools stand, and what each session uses, for whoever scrapes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from kernelpool.errors import AgentFault, BackendUnavailable, SandboxLost
from kernelpool.life import LiveSession
from kernelpool.pool.launcher import Connected
from kernelpool.pool.plan import Sizes
from kernelpool.pool.pool import WarmPool
from kernelpool.sessions import Sessions
from kernelpool.telemetry.readings import PoolReading, SessionReading

FRESH_SECONDS = 1.0
"""How old an answer may be: agents are not asked more often, however many scrape."""
ASK_SECONDS = 2.0
"""For all agents together. What one said last stands for it if it is slower."""
AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Surveyed:
    """A pool, as far as it is looked at."""

    sizes: Sizes
    warm: WarmPool[Connected]
    sessions: Sessions


class Survey:
    def __init__(self) -> None:
        self._asking = asyncio.Lock()
        self._fresh_until = 0.0

    async def take(self, pools: Sequence[Surveyed]) -> list[PoolReading]:
        async with self._asking:
            loop = asyncio.get_running_loop()
            if loop.time() >= self._fresh_until:
                await _ask(live for pool in pools for live in pool.sessions)
                self._fresh_until = loop.time() + FRESH_SECONDS
        return [_read(pool) for pool in pools]


async def _ask(sessions: Iterable[LiveSession]) -> None:
    gate = asyncio.Semaphore(AT_ONCE)

    async def ask(live: LiveSession) -> None:
        async with gate:
            # Whether it is lost is for the heartbeat to say.
            with suppress(SandboxLost, AgentFault, BackendUnavailable):
                live.status = await live.agent.status()

    with suppress(TimeoutError):
        async with asyncio.timeout(ASK_SECONDS), asyncio.TaskGroup() as group:
            for live in sessions:
                group.create_task(ask(live))


def _read(pool: Surveyed) -> PoolReading:
    statistics = pool.warm.statistics()
    now = statistics.now
    return PoolReading(
        name=pool.warm.name,
        ready=now.ready,
        starting=now.starting,
        in_use=now.in_use,
        leaving=now.leaving,
        waiting=now.waiting,
        wanted_ready=pool.sizes.ready,
        max_sessions=pool.sizes.max_sessions,
        started=statistics.started,
        start_failures=statistics.start_failures,
        handed_out=statistics.handed_out,
        died_ready=statistics.died_ready,
        retired=statistics.retired,
        discarded=statistics.discarded,
        discard_failures=statistics.discard_failures,
        sessions=tuple(_read_session(live, pool.sessions.age(live)) for live in pool.sessions),
    )


def _read_session(live: LiveSession, age: float) -> SessionReading:
    guid = live.record.session
    if (said := live.status) is None:
        return SessionReading(guid, age)
    return SessionReading(
        guid, age, said.running, said.queued, said.cpu_seconds, said.memory_bytes, said.workspace_bytes
    )
