"""Liveness: looks after the custom containers of a pool, and has those replaced that are not well any more."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from kernelpool.agents import ContainerAgent
from kernelpool.backends.container import Probe
from kernelpool.errors import GatewayDraining
from kernelpool.life import LiveSession
from kernelpool.pool.launcher import Connected
from kernelpool.pool.pool import WarmPool
from kernelpool.sessions import Sessions
from kernelpool.tasks import Tasks

log = logging.getLogger(__name__)


class Liveness:
    """An async context manager. Each container has a task of its own: one that answers slowly, or not at all, keeps
    none of the others from being looked at."""

    def __init__(
        self, warm: WarmPool[Connected], sessions: Sessions, probe: Probe | None, wall: Callable[[], float] = time.time
    ) -> None:
        self._warm = warm
        self._sessions = sessions
        self._probe = probe
        self._wall = wall
        # The mutable state: failures in a row of those that have any, and who is being looked at now.
        self._failures: dict[Connected, int] = {}
        self._looking: set[Connected] = set()
        self._changed = asyncio.Event()
        self._tasks = Tasks(f"liveness {warm.name}")

    async def __aenter__(self) -> Self:
        self._tasks.spawn(self._look_around(), "look around")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._tasks.aclose()

    def change(self, probe: Probe | None) -> None:
        """For all containers from the next look on, also for those that were started before."""
        self._probe = probe
        self._failures.clear()
        self._changed.set()

    async def _look_around(self) -> None:
        while True:
            self._changed.clear()
            probe = self._probe
            try:
                async with asyncio.timeout(probe.period if probe else None):
                    await self._changed.wait()
                    continue
            except TimeoutError:
                pass
            if probe is not None:
                self._look_at_all(probe)

    def _look_at_all(self, probe: Probe) -> None:
        owners: dict[Connected, LiveSession | None] = dict.fromkeys(self._warm.ready)
        owners |= {live.connected: live for live in self._sessions}
        self._failures = {item: count for item, count in self._failures.items() if item in owners}
        for item, live in owners.items():
            is_old_enough = self._wall() - item.sandbox.created_at >= probe.initial_delay
            if is_old_enough and item not in self._looking:
                self._looking.add(item)
                self._tasks.spawn(self._look_at(item, live, probe), "look at a container")

    async def _look_at(self, item: Connected, live: LiveSession | None, probe: Probe) -> None:
        try:
            assert isinstance(item.agent, ContainerAgent)
            why = await item.agent.probe(probe)
            if why is None:
                self._failures.pop(item, None)
                return
            failures = self._failures[item] = self._failures.get(item, 0) + 1
            facts = {"pool": self._warm.name, "sandbox": item.sandbox.id, "failures": failures, "why": why}
            log.info("liveness probe failed", extra=facts)
            if failures >= probe.failure_threshold:
                await self._give_up(item, live, f"it failed its liveness probe {failures} times: {why}")
        except GatewayDraining:
            pass  # the next gateway looks at it anew
        except Exception as error:  # what goes wrong with one look must not end all others
            log.error("container could not be looked at", extra={"sandbox": item.sandbox.id}, exc_info=error)
        finally:
            self._looking.discard(item)

    async def _give_up(self, item: Connected, live: LiveSession | None, why: str) -> None:
        self._failures.pop(item, None)
        if live is None:
            # It may have become a session's since: then the next look finds it there.
            self._warm.discard_ready(item, why)
        elif live.ended is None:
            await self._sessions.lost(live, why, is_certain=True)
