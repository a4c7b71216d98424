"""Probes of custom containers, in virtual time: when one counts as started, and when as not well any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from kernelpool.agents import ContainerAgent
from kernelpool.backends.base import Sandbox, UnixAddress
from kernelpool.backends.container import ContainerSpec, HttpCheck, Probe
from kernelpool.errors import Conflict, StartFailed
from kernelpool.journal import Journal
from kernelpool.liveness import Liveness
from kernelpool.models import Activation, ExecuteRequest
from kernelpool.pool.launcher import Connected, Launcher
from kernelpool.pool.pool import WarmPool
from kernelpool.pool.settings import PoolSettings
from kernelpool.sessions import Sessions
from tests.containers import CONTAINER
from tests.fakes import RUNTIME, FakeBackend
from tests.virtual_time import virtual_time

PROBE = Probe(HttpCheck("/health"), period=10, timeout=1, failure_threshold=3)


class Scripted(ContainerAgent):
    """Its looks go as they are told, and take as long."""

    def __init__(self, says: Callable[[int], str | None], *, probe: Probe | None = None, takes: float = 0) -> None:
        super().__init__(UnixAddress("/nowhere"), ContainerSpec("image", 8080, startup=probe))
        self._says = says
        self._takes = takes
        self.looks: list[float] = []

    async def probe(self, probe: Probe) -> str | None:
        self.looks.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self._takes)
        return self._says(len(self.looks))

    async def _listens(self) -> bool:
        return True


class World:
    def __init__(self, warm: WarmPool[Connected], sessions: Sessions, liveness: Liveness) -> None:
        self.warm = warm
        self.sessions = sessions
        self.liveness = liveness


@asynccontextmanager
async def world(folder: Path, agents: Callable[[], Scripted], ready: int = 1) -> AsyncIterator[World]:
    """A pool of kernels as far as its backend knows, with scripted containers for agents."""
    settings = PoolSettings(name="app", backend="docker", ready=ready, container=CONTAINER)
    backend = FakeBackend()

    class Connecting(Launcher):
        def connect(self, sandbox: Sandbox, *, is_used: bool = False) -> Connected:
            return Connected(sandbox, agents())

    async with AsyncExitStack() as stack:
        launcher = await stack.enter_async_context(Connecting(settings, RUNTIME, backend, backend.connect))
        journal = await stack.enter_async_context(Journal(folder))
        warm = await stack.enter_async_context(WarmPool(settings.name, settings.sizes, launcher))
        sessions = await stack.enter_async_context(Sessions(settings, warm, journal))
        wall = lambda: asyncio.get_running_loop().time() + 1e12  # noqa: E731 - old enough, whenever it was made
        liveness = await stack.enter_async_context(Liveness(warm, sessions, PROBE, wall))
        while len(warm.ready) < ready:
            await asyncio.sleep(0.01)
        yield World(warm, sessions, liveness)


async def test_it_starts_when_it_passes_and_looks_come_a_period_apart() -> None:
    with virtual_time():
        agent = Scripted(lambda look: None if look == 3 else "status 503", probe=PROBE)
        began = asyncio.get_running_loop().time()
        await agent.wait_ready(60)

        assert [round(look - began) for look in agent.looks] == [0, 10, 20]
        assert (await agent.status()).ready


async def test_one_that_fails_its_startup_probe_often_enough_does_not_start() -> None:
    with virtual_time():
        agent = Scripted(lambda _: "status 503", probe=PROBE)

        with pytest.raises(StartFailed, match="failed its startup probe 3 times: status 503"):
            await agent.wait_ready(60)

        assert len(agent.looks) == 3


async def test_a_start_has_the_pools_limit_whatever_its_probe_allows() -> None:
    with virtual_time():
        agent = Scripted(lambda _: "status 503", probe=PROBE)

        with pytest.raises(StartFailed, match="within 15 s"):
            await agent.wait_ready(15)


async def test_a_ready_one_that_is_not_well_is_replaced(tmp_path: Path) -> None:
    with virtual_time():
        made: list[Scripted] = []

        def make() -> Scripted:
            number = len(made)
            made.append(Scripted(lambda _: "status 503" if number == 0 else None))
            return made[-1]

        async with world(tmp_path, make) as seen:
            [first] = seen.warm.ready
            await asyncio.sleep(10 * 3 + 1)

            assert len(made[0].looks) == 3
            [second] = seen.warm.ready
            assert second is not first


async def test_failures_count_only_in_a_row(tmp_path: Path) -> None:
    with virtual_time():
        agent = Scripted(lambda look: None if look % 3 == 0 else "status 503")
        async with world(tmp_path, lambda: agent) as seen:
            [first] = seen.warm.ready
            await asyncio.sleep(10 * 12 + 1)

            assert list(seen.warm.ready) == [first]


async def test_a_session_whose_container_is_not_well_ends_and_its_owner_is_told(tmp_path: Path) -> None:
    with virtual_time():
        agents: list[Scripted] = []

        def make() -> Scripted:
            well = len(agents) > 0
            agents.append(Scripted(lambda _: None if well else "status 503"))
            return agents[-1]

        async with world(tmp_path, make) as seen:
            async with seen.sessions.use("t", "identifier") as held:
                live = held.live
            await asyncio.sleep(10 * 4)

            assert live.ended == "it failed its liveness probe 3 times: status 503"
            async with seen.sessions.use("t", "identifier") as held:
                assert held.is_new
                assert isinstance(held.live.agent, Scripted)
                assert "liveness probe" in (held.live.agent.notice or "")


async def test_one_that_hangs_keeps_none_of_the_others_from_being_looked_at(tmp_path: Path) -> None:
    with virtual_time():
        agents: list[Scripted] = []

        def make() -> Scripted:
            agents.append(Scripted(lambda _: None, takes=0 if agents else 1e6))
            return agents[-1]

        async with world(tmp_path, make, ready=2):
            await asyncio.sleep(10 * 5 + 1)

            assert [len(agent.looks) for agent in agents] == [1, 5]


async def test_what_only_kernels_have_is_refused() -> None:
    agent = Scripted(lambda _: None)

    with pytest.raises(Conflict, match="custom containers"):
        await agent.execute(ExecuteRequest("id", "1", 1.0))


async def test_it_is_activated_once_and_one_of_an_earlier_gateway_is_known_by_its_record() -> None:
    activation = Activation("session", 1.0, 1.0, "why")
    agent = Scripted(lambda _: None)
    await agent.activate(activation)
    with pytest.raises(Conflict):
        await agent.activate(activation)

    adopted = ContainerAgent(UnixAddress("/nowhere"), ContainerSpec("image", 8080), is_used=True)

    assert agent.notice == "why"
    assert (await adopted.status()).activated
    with pytest.raises(Conflict):
        await adopted.activate(activation)
