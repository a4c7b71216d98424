"""Sessions: one for each identifier, as long as it is used, and a word on why when it is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kernelpool.errors import (
    AllocationTimeout,
    BackendUnavailable,
    SandboxUnreachable,
    SessionLimitReached,
    SessionNotFound,
    StartFailed,
)
from kernelpool.heartbeat import Heartbeat
from kernelpool.journal import Journal
from kernelpool.life import LiveSession
from kernelpool.models import AgentStatus, ExecuteRequest
from kernelpool.pool.launcher import Connected, Launcher
from kernelpool.pool.pool import WarmPool
from kernelpool.pool.settings import PoolSettings
from kernelpool.sessions import TOMBSTONES, Sessions
from tests.fakes import RUNTIME, FakeBackend, FakeSandbox

pytestmark = pytest.mark.usefixtures("virtual_clock")


@dataclass
class House:
    """A pool with its sessions, over a fake backend."""

    backend: FakeBackend
    warm: WarmPool[Connected]
    sessions: Sessions
    journal: Journal
    heartbeat: Heartbeat

    async def touch(self, identifier: str = "user", tenant: str = "t") -> LiveSession:
        async with self.sessions.use(tenant, identifier) as held:
            return held.live

    async def records(self) -> set[str]:
        return set((await self.journal.load()).records)


@asynccontextmanager
async def house(state: Path, backend: FakeBackend | None = None, **settings: Any) -> AsyncIterator[House]:
    backend = backend or FakeBackend()
    pool = PoolSettings(**{"cooldown": 300, "ready": 1, "max_ready_age": 10**6} | settings)
    async with AsyncExitStack() as stack:
        journal = await stack.enter_async_context(Journal(state))
        launcher = await stack.enter_async_context(Launcher(pool, RUNTIME, backend, backend.connect))
        warm = await stack.enter_async_context(WarmPool("default", pool.sizes, launcher))
        clock = asyncio.get_running_loop().time
        sessions = await stack.enter_async_context(Sessions(pool, warm, journal, wall=lambda: 10**9 + clock()))
        heartbeat = await stack.enter_async_context(Heartbeat(pool.lease / 4, warm, sessions))
        yield House(backend, warm, sessions, journal, heartbeat)
        await sessions.stop_all()


def sandbox_of(live: LiveSession) -> FakeSandbox:
    assert isinstance(live.connected.sandbox, FakeSandbox)
    return live.connected.sandbox


def notice_of(live: LiveSession) -> str | None:
    activation = sandbox_of(live).process.activation
    assert activation is not None
    return activation.notice


async def settle() -> None:
    await asyncio.sleep(1)


# --- allocation


async def test_an_identifier_keeps_its_sandbox(tmp_path: Path) -> None:
    async with house(tmp_path) as it:
        first, second, other = await it.touch(), await it.touch(), await it.touch("other")

        assert first is second
        assert first is not other


async def test_the_same_identifier_of_another_tenant_is_another_session(tmp_path: Path) -> None:
    async with house(tmp_path) as it:
        assert await it.touch(tenant="a") is not await it.touch(tenant="b")


async def test_a_new_identifier_takes_a_ready_sandbox_and_starts_nothing(tmp_path: Path) -> None:
    async with house(tmp_path) as it:
        await settle()
        it.backend.may_create.clear()

        live = await it.touch()

        assert sandbox_of(live) is it.backend.created[0]
        it.backend.may_create.set()


async def test_racing_first_requests_get_one_session_and_one_is_told_that_it_is_new(tmp_path: Path) -> None:
    async with house(tmp_path, ready=0) as it:

        async def caller() -> tuple[LiveSession, bool]:
            async with it.sessions.use("t", "user") as held:
                return held.live, held.is_new

        results = await asyncio.gather(*(caller() for _ in range(20)))

        assert len({live.record.sandbox for live, _ in results}) == 1
        assert sum(is_new for _, is_new in results) == 1
        assert len(it.backend.created) == 1


async def test_a_cancelled_first_request_does_not_harm_those_who_joined_it(tmp_path: Path) -> None:
    async with house(tmp_path, ready=0) as it:
        first, second = asyncio.create_task(it.touch()), asyncio.create_task(it.touch())
        await asyncio.sleep(0)
        first.cancel()

        live = await second

        assert first.cancelled()
        assert live.ended is None
        assert len(it.backend.created) == 1


async def test_when_all_who_wanted_it_have_left_nothing_is_allocated(tmp_path: Path) -> None:
    async with house(tmp_path, ready=0) as it:
        callers = [asyncio.create_task(it.touch()) for _ in range(3)]
        await asyncio.sleep(0)
        for caller in callers:
            caller.cancel()
        await settle()

        assert len(it.sessions) == 0
        assert it.warm.statistics().now.waiting == 0
        assert await it.touch()


async def test_a_failed_first_request_leaves_the_identifier_usable(tmp_path: Path) -> None:
    backend = FakeBackend()
    backend.may_create.clear()
    async with house(tmp_path, backend, ready=0, allocation_timeout=5, start_timeout=600) as it:
        with pytest.raises(AllocationTimeout):
            await it.touch()

        backend.may_create.set()
        assert (await it.touch()).ended is None


async def test_at_the_maximum_a_new_identifier_is_refused_and_a_known_one_is_not(tmp_path: Path) -> None:
    async with house(tmp_path, max_sessions=1) as it:
        live = await it.touch("known")

        with pytest.raises(SessionLimitReached):
            await it.touch("new")
        assert await it.touch("known") is live


async def test_a_ready_sandbox_that_turns_out_dead_is_passed_over(tmp_path: Path) -> None:
    async with house(tmp_path) as it:
        await settle()
        it.backend.created[0].process.silent = True

        live = await it.touch()

        assert sandbox_of(live) is not it.backend.created[0]
        await settle()
        assert it.backend.created[0].id not in it.backend.sandboxes
        assert await it.records() == {live.record.sandbox}


async def test_a_sandbox_that_never_gets_ready_is_ended_and_its_callers_are_told(tmp_path: Path) -> None:
    class Slow(FakeBackend):
        async def create(self, spec: Any) -> Any:
            sandbox = await super().create(spec)
            self.created[-1].process.ready.clear()
            return sandbox

    backend = Slow()
    async with house(tmp_path, backend, ready=0, start_timeout=2, allocation_timeout=600) as it:
        with pytest.raises(StartFailed, match="not ready within 2 s"):
            await it.touch()

    assert backend.sandboxes == {}


async def test_a_sandbox_that_dies_while_it_starts_is_known_at_once(tmp_path: Path) -> None:
    class Sick(FakeBackend):
        async def create(self, spec: Any) -> Any:
            sandbox = await super().create(spec)
            self.created[-1].process.ready.clear()
            self.created[-1].process.die("out of memory")
            return sandbox

    began = asyncio.get_running_loop().time()
    async with house(tmp_path, Sick(), ready=0, start_timeout=3600, allocation_timeout=3600) as it:
        with pytest.raises(StartFailed, match="out of memory"):
            await it.touch()

    assert asyncio.get_running_loop().time() - began < 60


# --- expiry


async def test_a_session_ends_when_its_cooldown_has_passed(tmp_path: Path) -> None:
    async with house(tmp_path, cooldown=5) as it:
        live = await it.touch()
        await asyncio.sleep(4.9)
        assert live.ended is None

        await asyncio.sleep(0.2)

        assert live.ended == "it was not used for 5 s"
        assert sandbox_of(live).id not in it.backend.sandboxes
        assert await it.records() == set()


async def test_each_use_starts_the_cooldown_anew(tmp_path: Path) -> None:
    async with house(tmp_path, cooldown=5) as it:
        live = await it.touch()
        for _ in range(10):
            await asyncio.sleep(4)
            assert await it.touch() is live


async def test_a_held_session_does_not_expire(tmp_path: Path) -> None:
    async with house(tmp_path, cooldown=5) as it:
        async with it.sessions.use("t", "user") as held:
            await asyncio.sleep(1000)
            assert held.live.ended is None
        await asyncio.sleep(4.9)
        assert held.live.ended is None
        await asyncio.sleep(0.2)
        assert held.live.ended is not None


async def test_submitted_code_keeps_its_session_alive_and_the_cooldown_counts_from_its_end(tmp_path: Path) -> None:
    async with house(tmp_path, cooldown=5) as it:
        live = await it.touch()
        await live.agent.submit(ExecuteRequest("e", "time.sleep(100)", 200))

        await asyncio.sleep(104)
        assert live.ended is None
        await asyncio.sleep(3)
        assert live.ended is not None


async def test_whatever_its_idle_time_a_busy_agent_keeps_its_session(tmp_path: Path) -> None:
    async with house(tmp_path, cooldown=5) as it:
        for identifier, running, queued in (("running", 1, 0), ("queued", 0, 1)):
            live = await it.touch(identifier)
            sandbox_of(live).process.status_said = AgentStatus(True, True, running, queued, 10**6)

        await asyncio.sleep(100)

        assert len(it.sessions) == 2


async def test_a_sandbox_that_claims_to_be_busy_for_ever_ends_with_its_longest_life(tmp_path: Path) -> None:
    async with house(tmp_path, cooldown=5, max_alive=1000) as it:
        live = await it.touch()
        sandbox_of(live).process.status_said = AgentStatus(True, True, 1, 0, 0.0)

        await asyncio.sleep(999)
        assert live.ended is None
        await asyncio.sleep(2)
        assert live.ended == "it reached its longest life of 1000 s"


async def test_a_sandbox_that_claims_to_be_almost_idle_is_not_asked_all_the_time(tmp_path: Path) -> None:
    async with house(tmp_path, cooldown=5, max_alive=100) as it:
        live = await it.touch()
        process = sandbox_of(live).process
        process.status_said = AgentStatus(True, True, 0, 0, 4.999999999)

        await asyncio.sleep(90)

        assert live.ended is None
        assert process.pings < 100


@pytest.mark.parametrize("idle", [float("nan"), float("inf"), -1e300, 1e300])
async def test_an_absurd_idle_time_does_no_harm(tmp_path: Path, idle: float) -> None:
    async with house(tmp_path, cooldown=5, max_alive=60) as it:
        live = await it.touch()
        sandbox_of(live).process.status_said = AgentStatus(True, True, 0, 0, idle)

        await asyncio.sleep(61)

        assert live.ended is not None
        assert sandbox_of(live).process.pings < 100


# --- the end


async def test_a_stopped_session_is_gone_and_its_identifier_starts_anew_without_a_notice(tmp_path: Path) -> None:
    async with house(tmp_path) as it:
        first = await it.touch()

        await it.sessions.stop("t", "user")
        assert sandbox_of(first).id not in it.backend.sandboxes
        second = await it.touch()

        assert second is not first
        assert notice_of(second) is None
        assert await it.records() == {second.record.sandbox}


async def test_an_identifier_is_free_at_once_while_its_old_sandbox_is_being_destroyed(tmp_path: Path) -> None:
    async with house(tmp_path) as it:
        first = await it.touch()
        await settle()
        it.backend.may_destroy.clear()
        stopping = asyncio.create_task(it.sessions.stop("t", "user"))
        await asyncio.sleep(0)

        second = await it.touch()

        assert second is not first
        assert not stopping.done()
        it.backend.may_destroy.set()
        await stopping


async def test_only_what_is_there_can_be_stopped(tmp_path: Path) -> None:
    async with house(tmp_path) as it:
        await it.touch(tenant="a")

        with pytest.raises(SessionNotFound):
            await it.sessions.stop("b", "user")


async def test_a_dead_sandbox_ends_its_session_at_once_and_the_next_one_hears_why(tmp_path: Path) -> None:
    async with house(tmp_path) as it:
        first = await it.touch()

        sandbox_of(first).process.die("out of memory")
        await asyncio.sleep(0.001)
        assert first.ended == "its sandbox died: out of memory"
        second, third = await it.touch(), await it.touch("other")

        assert "out of memory" in (notice_of(second) or "")
        assert notice_of(third) is None
        assert await it.records() == {second.record.sandbox, third.record.sandbox}


async def test_the_notice_is_given_once(tmp_path: Path) -> None:
    async with house(tmp_path) as it:
        sandbox_of(await it.touch()).process.die("out of memory")
        await settle()
        await it.touch()
        await it.sessions.stop("t", "user")

        assert notice_of(await it.touch()) is None


async def test_a_request_that_is_refused_does_not_use_up_the_notice(tmp_path: Path) -> None:
    async with house(tmp_path, max_sessions=1) as it:
        sandbox_of(await it.touch()).process.die("out of memory")
        await settle()
        other = await it.touch("other")
        with pytest.raises(SessionLimitReached):
            await it.touch()
        sandbox_of(other).process.die()
        await settle()

        assert "out of memory" in (notice_of(await it.touch()) or "")


async def test_no_more_than_so_many_ended_sessions_are_remembered(tmp_path: Path) -> None:
    async with house(tmp_path) as it:
        for number in range(TOMBSTONES + 1):
            it.sessions.remember("t", f"user{number}", "it was long ago")

        assert notice_of(await it.touch("user0")) is None
        assert notice_of(await it.touch("user1")) is not None


async def test_a_sandbox_that_cannot_be_destroyed_is_recorded_as_ended(tmp_path: Path) -> None:
    async with house(tmp_path) as it:
        live = await it.touch()
        it.backend.is_stuck = True
        await it.sessions.stop("t", "user")

        assert (await it.journal.load()).records[live.record.sandbox].ended == "it was stopped"
        it.backend.is_stuck = False


async def test_the_record_is_there_before_the_sandbox_hears_of_its_session(tmp_path: Path) -> None:
    async with house(tmp_path) as it:
        await settle()
        process = it.backend.created[0].process
        process.may_activate.clear()
        touching = asyncio.create_task(it.touch())
        await settle()

        assert process.activation is None
        assert await it.records() == {it.backend.created[0].id}
        process.may_activate.set()
        await touching


async def test_a_caller_who_leaves_during_the_activation_leaves_neither_sandbox_nor_record(tmp_path: Path) -> None:
    async with house(tmp_path) as it:
        await settle()
        first = it.backend.created[0]
        first.process.may_activate.clear()
        touching = asyncio.create_task(it.touch())
        await settle()
        touching.cancel()
        await settle()

        assert first.id not in it.backend.sandboxes
        assert await it.records() == set()
        assert it.warm.statistics().now.in_use == 0


# --- heartbeat


async def test_every_agent_hears_from_the_gateway_several_times_in_a_lease(tmp_path: Path) -> None:
    async with house(tmp_path, lease=100, cooldown=10**6) as it:
        live = await it.touch()
        await asyncio.sleep(101)

        assert sandbox_of(live).process.pings >= 3
        assert it.backend.created[1].process.pings >= 3


async def test_a_ready_sandbox_that_falls_silent_is_replaced(tmp_path: Path) -> None:
    async with house(tmp_path, lease=100) as it:
        await settle()
        it.backend.created[0].process.silent = True
        await asyncio.sleep(30)

        assert it.backend.created[0].id not in it.backend.sandboxes
        assert it.warm.statistics().now.ready == 1


async def test_a_session_that_is_silent_once_gets_another_chance(tmp_path: Path) -> None:
    async with house(tmp_path, lease=100, cooldown=10**6) as it:
        live = await it.touch()
        sandbox_of(live).process.silent = True
        await asyncio.sleep(27)
        sandbox_of(live).process.silent = False
        await asyncio.sleep(60)

        assert live.ended is None


async def test_a_session_that_stays_silent_is_lost(tmp_path: Path) -> None:
    async with house(tmp_path, lease=100, cooldown=10**6) as it:
        live = await it.touch()
        sandbox_of(live).process.silent = True
        await asyncio.sleep(60)

        assert live.ended == "its sandbox fell silent"
        assert sandbox_of(live).id not in it.backend.sandboxes
        assert "fell silent" in (notice_of(await it.touch()) or "")


async def test_one_that_cannot_be_checked_does_not_keep_the_others_from_it(tmp_path: Path) -> None:
    async with house(tmp_path, lease=100, cooldown=10**6) as it:
        odd, good = await it.touch("odd!"), await it.touch("good")
        sandbox_of(odd).process.status_error = RuntimeError("odd")
        await asyncio.sleep(1000)
        before = sandbox_of(good).process.pings
        await asyncio.sleep(1000)

        assert sandbox_of(good).process.pings > before + 10


@pytest.mark.parametrize("error", [RuntimeError("odd"), BackendUnavailable("no descriptors")])
async def test_one_that_cannot_be_asked_lives_no_longer_than_it_may(tmp_path: Path, error: Exception) -> None:
    async with house(tmp_path, cooldown=100, max_alive=1000) as it:
        live = await it.touch()
        sandbox_of(live).process.status_error = error
        await asyncio.sleep(900)
        assert (live.ended is None) == isinstance(error, BackendUnavailable)
        await asyncio.sleep(200)

        assert live.ended is not None


async def test_a_connection_that_breaks_under_a_session_that_lives_does_not_end_it(tmp_path: Path) -> None:
    async with house(tmp_path) as it:
        live = await it.touch()

        with pytest.raises(SandboxUnreachable):
            await it.sessions.lost(live, "its sandbox does not answer")

        assert live.ended is None


async def test_a_shorter_lease_counts_at_once(tmp_path: Path) -> None:
    async with house(tmp_path, lease=600) as it:
        await asyncio.sleep(5)
        before = it.backend.created[0].process.pings
        it.heartbeat.quicken(2.5)
        await asyncio.sleep(3)

        assert it.backend.created[0].process.pings > before
