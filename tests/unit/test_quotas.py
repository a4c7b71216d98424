"""Quotas: how much a tenant may use, and when it may go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelpool.errors import QuotaExceeded
from kernelpool.gateway import Gateway, PoolSource, Principal
from kernelpool.journal import Journal
from kernelpool.models import ExecuteRequest, WorkspacePath
from kernelpool.pool.settings import PoolSettings
from kernelpool.quotas import Quotas, QuotaSettings
from tests.fakes import METADATA, RUNTIME, FakeBackend

ANNA = Principal("anna", tenant="a")
BEN = Principal("ben", tenant="b")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(st.integers(1, 20), st.lists(st.floats(0, 30), max_size=80))
def test_whoever_asks_gets_no_more_than_his_rate_and_no_less_than_it(limit: int, pauses: list[float]) -> None:
    clock = Clock()
    quotas = Quotas({"a": QuotaSettings(executions_per_minute=limit)}, clock)
    granted: list[float] = []
    for pause in pauses:
        clock.now += pause
        try:
            quotas.count_execution("a")
        except QuotaExceeded as error:
            clock.now += min(error.retry_after, 60) + 1e-6
            quotas.count_execution("a")
        granted.append(clock.now)

    for index, time in enumerate(granted):
        recent = [other for other in granted[: index + 1] if other > time - 60]
        assert len(recent) <= 2 * limit  # a burst of a full minute, and the minute that goes by meanwhile


def test_a_minute_that_nobody_used_is_there_at_once_and_no_more() -> None:
    clock = Clock()
    quotas = Quotas({"*": QuotaSettings(executions_per_minute=3)}, clock)
    for _ in range(3):
        quotas.count_execution("a")

    with pytest.raises(QuotaExceeded, match="More than 3 executions") as caught:
        quotas.count_execution("a")

    assert caught.value.retry_after == pytest.approx(20)
    quotas.count_execution("b")
    clock.now += 20.001
    quotas.count_execution("a")


def test_a_tenant_by_name_goes_before_anybody() -> None:
    quotas = Quotas({"a": QuotaSettings(sessions=5), "*": QuotaSettings(sessions=1)})

    assert (quotas.of("a").sessions, quotas.of("b").sessions) == (5, 1)
    assert Quotas().of("a") == QuotaSettings()


# --- as the gateway holds them


@asynccontextmanager
async def gateway_with(folder: Path, **quota: Any) -> AsyncIterator[Gateway]:
    backend = FakeBackend()
    sources = [
        PoolSource(PoolSettings(name=name, ready=1, max_sessions=20), RUNTIME, backend, METADATA) for name in "xy"
    ]
    quotas = Quotas({"a": QuotaSettings(**quota)}, asyncio.get_running_loop().time)
    async with Journal(folder) as journal, Gateway(sources, backend.connect, journal, quotas) as gateway:
        yield gateway
        await gateway.aclose(discard=True)


async def touch(gateway: Gateway, pool: str, identifier: str, who: Principal = ANNA) -> None:
    async with gateway.use(who, pool, identifier):
        pass


@pytest.mark.usefixtures("virtual_clock")
async def test_a_tenants_sessions_are_counted_over_all_pools(tmp_path: Path) -> None:
    async with gateway_with(tmp_path, sessions=2) as gateway:
        await touch(gateway, "x", "one!")
        await touch(gateway, "y", "two!")
        with pytest.raises(QuotaExceeded, match="2 are allowed"):
            await touch(gateway, "y", "three")

        await touch(gateway, "x", "one!")  # it has that one
        await touch(gateway, "x", "three", BEN)
        await gateway.stop_session(ANNA, "x", "one!")
        await touch(gateway, "y", "three")


@pytest.mark.usefixtures("virtual_clock")
async def test_those_who_race_for_the_last_place_do_not_both_get_it(tmp_path: Path) -> None:
    async with gateway_with(tmp_path, sessions=3) as gateway:
        calls = [touch(gateway, pool, f"id-{number}") for number in range(10) for pool in "xy"]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)

    assert sum(isinstance(outcome, QuotaExceeded) for outcome in outcomes) == 17
    assert outcomes.count(None) == 3


@pytest.mark.usefixtures("virtual_clock")
async def test_executions_are_counted_by_the_minute(tmp_path: Path) -> None:
    async with (
        gateway_with(tmp_path, executions_per_minute=2) as gateway,
        gateway.use(ANNA, "x", "one!") as session,
    ):
        await session.execute(ExecuteRequest("1", "1", 10))
        await session.submit(ExecuteRequest("2", "1", 10))
        with pytest.raises(QuotaExceeded) as caught:
            await session.execute(ExecuteRequest("3", "1", 10))
        await asyncio.sleep(caught.value.retry_after + 0.001)

        await session.execute(ExecuteRequest("3", "1", 10))


@pytest.mark.usefixtures("virtual_clock")
async def test_files_of_all_sessions_count_together(tmp_path: Path) -> None:
    async def data() -> AsyncIterator[bytes]:
        yield bytes(60)

    path = WorkspacePath.parse("a")
    async with gateway_with(tmp_path, stored_bytes=100) as gateway:
        for pool in "xy":
            async with gateway.use(ANNA, pool, "one!") as session:
                await session.write_file(path, data())
        async with gateway.use(ANNA, "x", "one!") as session:
            with pytest.raises(QuotaExceeded, match="120 bytes; 100 are allowed"):
                await session.write_file(path, data())
            with pytest.raises(QuotaExceeded):
                await touch(gateway, "x", "two!")
            await session.delete_file(path)

            await session.write_file(path, data())


@pytest.mark.usefixtures("virtual_clock")
async def test_callers_who_race_for_one_identifier_need_one_place(tmp_path: Path) -> None:
    async with gateway_with(tmp_path, sessions=2, stored_bytes=1000) as gateway:
        await touch(gateway, "x", "one!")

        await asyncio.gather(*(touch(gateway, "x", "two!") for _ in range(5)))


@pytest.mark.usefixtures("virtual_clock")
async def test_a_pool_that_goes_while_files_are_counted_disturbs_nobody(tmp_path: Path) -> None:
    async with gateway_with(tmp_path, stored_bytes=1000) as gateway:
        await touch(gateway, "x", "one!")
        await touch(gateway, "y", "one!")
        coming = asyncio.create_task(touch(gateway, "x", "two!"))
        await asyncio.sleep(0)

        await gateway.close_pool("y")

        await coming


@pytest.mark.usefixtures("virtual_clock")
async def test_an_execution_that_is_sent_again_counts_once(tmp_path: Path) -> None:
    async with (
        gateway_with(tmp_path, executions_per_minute=2) as gateway,
        gateway.use(ANNA, "x", "one!") as session,
    ):
        for _ in range(5):
            await session.submit(ExecuteRequest("1", "1", 10))

        await session.submit(ExecuteRequest("2", "1", 10))


@pytest.mark.usefixtures("virtual_clock")
async def test_whoever_may_start_nothing_gets_no_sandbox_for_it(tmp_path: Path) -> None:
    async with gateway_with(tmp_path, executions_per_minute=1) as gateway:
        async with gateway.use(ANNA, "x", "one!") as session:
            await session.submit(ExecuteRequest("1", "1", 10))

        with pytest.raises(QuotaExceeded):
            await touch(gateway, "x", "two!")

        assert len(await gateway.list_sessions(ANNA, "x")) == 1
