"""WarmPool: handed out once, never lost, never more than allowed, whoever leaves and whatever dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernelpool.errors import AllocationTimeout, BackendUnavailable, GatewayDraining, SessionLimitReached, StartFailed
from kernelpool.pool.plan import Sizes, Snapshot
from kernelpool.pool.pool import WarmPool
from kernelpool.pool.waiter import Waiter
from tests.virtual_time import virtual_time

pytestmark = pytest.mark.usefixtures("virtual_clock")


class Cup:
    """Something that is slow to make."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.glaze = "blue"
        self.broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.is_discarded = False

    def __repr__(self) -> str:
        return f"<Cup {self.number}>"


class Kitchen:
    """Makes cups. A start takes a second; the knobs are public."""

    def __init__(self) -> None:
        self.cups: list[Cup] = []
        self.starting = 0
        self.most_starting = 0
        self.failures = 0
        self.failure: Exception = StartFailed("out of clay")
        self.glaze = "blue"
        self.banned: set[str] = set()
        self.most_alive = 0
        self.starts: list[float] = []
        self.may_discard = asyncio.Event()
        self.may_discard.set()

    @property
    def alive(self) -> list[Cup]:
        return [cup for cup in self.cups if not cup.is_discarded]

    async def start(self) -> Cup:
        self.starts.append(asyncio.get_running_loop().time())
        glaze = self.glaze
        self.starting += 1
        self.most_starting = max(self.most_starting, self.starting)
        self.most_alive = max(self.most_alive, self.starting + len(self.alive))
        try:
            await asyncio.sleep(1)
        finally:
            self.starting -= 1
        if self.failures:
            self.failures -= 1
            raise self.failure
        cup = Cup(len(self.cups) + 1)
        cup.glaze = glaze
        self.cups.append(cup)
        return cup

    async def wait_dead(self, item: Cup) -> str:
        return await asyncio.shield(item.broken)

    def is_current(self, item: Cup) -> bool:
        return item.glaze == self.glaze

    def is_acceptable(self, item: Cup) -> bool:
        return item.glaze not in self.banned

    async def discard(self, item: Cup) -> None:
        await self.may_discard.wait()
        item.is_discarded = True


@asynccontextmanager
async def pool_of(kitchen: Kitchen, **sizes: float) -> AsyncIterator[WarmPool[Cup]]:
    async with WarmPool("cups", Sizes(**sizes), kitchen) as pool:  # type: ignore[arg-type]
        yield pool


async def settle() -> None:
    """Everything that is under way gets done."""
    await asyncio.sleep(10)


async def test_it_is_really_a_pool() -> None:
    kitchen = Kitchen()
    async with pool_of(kitchen, ready=2) as pool:
        await settle()
        assert repr(pool) == "<WarmPool 'cups' [2 ready, 0 starting, 0 in use, 0 waiting]>"

        cup = await pool.acquire()
        assert repr(pool) == "<WarmPool 'cups' [1 ready, 0 starting, 1 in use, 0 waiting]>"

        await settle()
        assert repr(pool) == "<WarmPool 'cups' [2 ready, 0 starting, 1 in use, 0 waiting]>"

        await pool.discard(cup)
        assert repr(pool) == "<WarmPool 'cups' [2 ready, 0 starting, 0 in use, 0 waiting]>"
        assert cup.is_discarded
    assert repr(pool).endswith("closed>")


async def test_a_ready_one_is_handed_out_without_waiting_for_anything() -> None:
    async with pool_of(Kitchen(), ready=1) as pool:
        await settle()

        acquiring = pool.acquire()
        with pytest.raises(StopIteration) as done:
            acquiring.send(None)

        assert done.value.value.number == 1


async def test_nothing_is_ever_handed_out_twice() -> None:
    async with pool_of(Kitchen(), ready=1, max_sessions=20) as pool:
        cups = await asyncio.gather(*(pool.acquire() for _ in range(20)))

    assert len({cup.number for cup in cups}) == 20


async def test_the_oldest_ready_one_goes_first() -> None:
    async with pool_of(Kitchen(), ready=3, start_concurrency=1) as pool:
        await settle()

        assert [(await pool.acquire()).number for _ in range(3)] == [1, 2, 3]


async def test_who_came_first_is_served_first() -> None:
    async with pool_of(Kitchen(), ready=0, start_concurrency=1) as pool:
        served: list[int] = []

        async def caller(number: int) -> None:
            await pool.acquire()
            served.append(number)

        await asyncio.gather(*(caller(number) for number in range(5)))

    assert served == [0, 1, 2, 3, 4]


async def test_no_more_start_at_once_than_allowed() -> None:
    kitchen = Kitchen()
    async with pool_of(kitchen, ready=6, start_concurrency=3):
        await settle()

    assert (kitchen.most_starting, len(kitchen.cups)) == (3, 6)


async def test_at_the_maximum_a_caller_is_refused_with_the_numbers() -> None:
    async with pool_of(Kitchen(), ready=0, max_sessions=2) as pool:
        await pool.acquire()
        waiting = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0)

        with pytest.raises(SessionLimitReached) as refused:
            await pool.acquire()
        await waiting

    assert str(refused.value) == (
        "The request sessions count is '1'. There are already '2' active sessions "
        "and the maximum active sessions count is '2'."
    )


async def test_who_comes_while_the_last_place_is_being_cleared_waits_for_it() -> None:
    kitchen = Kitchen()
    async with pool_of(kitchen, ready=1, max_sessions=1) as pool:
        first = await pool.acquire()
        kitchen.may_discard.clear()
        leaving = pool.discard(first)
        second = asyncio.create_task(pool.acquire())
        await settle()
        assert repr(pool) == "<WarmPool 'cups' [0 ready, 0 starting, 0 in use, 1 waiting, 1 leaving]>"

        kitchen.may_discard.set()

        assert await leaving
        assert (await second).number == 2
        assert kitchen.most_alive == 1


async def test_a_caller_does_not_wait_longer_than_the_timeout() -> None:
    async with pool_of(Kitchen(), ready=0, allocation_timeout=0.5) as pool:
        with pytest.raises(AllocationTimeout, match=r"pool 'cups' got ready within 0\.5 s"):
            await pool.acquire()

        assert pool.statistics().now.waiting == 0


async def test_what_a_caller_who_left_was_waiting_for_goes_to_the_next() -> None:
    kitchen = Kitchen()
    async with pool_of(kitchen, ready=0, max_sessions=2, start_concurrency=1) as pool:
        leaver, stayer = asyncio.create_task(pool.acquire()), asyncio.create_task(pool.acquire())
        await asyncio.sleep(0)
        leaver.cancel()

        assert (await stayer).number == 1


async def test_what_was_given_in_the_tick_in_which_the_caller_left_is_passed_on() -> None:
    class Tactless(Kitchen):
        async def start(self) -> Cup:
            cup = await super().start()
            # Runs after the cup is given to the first in line, and before he runs to see it.
            asyncio.get_running_loop().call_soon(leaver.cancel)
            return cup

    async with pool_of(Tactless(), ready=0, start_concurrency=1) as pool:
        leaver, stayer = asyncio.create_task(pool.acquire()), asyncio.create_task(pool.acquire())

        assert (await stayer).number == 1
        assert leaver.cancelled()
        assert pool.statistics().handed_out == 2
        assert pool.statistics().now.in_use == 1


async def test_what_nobody_wants_any_more_stands_ready() -> None:
    async with pool_of(Kitchen(), ready=1, max_sessions=1) as pool:
        caller = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0.5)
        caller.cancel()
        await settle()

        assert repr(pool) == "<WarmPool 'cups' [1 ready, 0 starting, 0 in use, 0 waiting]>"


async def test_one_that_dies_while_it_stands_ready_is_replaced_before_anybody_gets_it() -> None:
    kitchen = Kitchen()
    async with pool_of(kitchen, ready=1) as pool:
        await settle()
        kitchen.cups[0].broken.set_result("dropped")
        await settle()

        assert kitchen.cups[0].is_discarded
        assert (await pool.acquire()).number == 2
        assert pool.statistics().died_ready == 1


async def test_one_that_is_in_use_is_not_the_pools_to_discard() -> None:
    async with pool_of(Kitchen(), ready=1) as pool:
        cup = await pool.acquire()
        cup.broken.set_result("dropped")
        await settle()

        assert not pool.discard_ready(cup, "it is broken")
        assert not cup.is_discarded


async def test_old_ones_are_replaced_one_at_a_time_and_there_is_always_one_ready() -> None:
    kitchen = Kitchen()
    async with pool_of(kitchen, ready=2, max_ready_age=100) as pool:
        await settle()
        for _ in range(110):
            await asyncio.sleep(1)
            assert pool.statistics().now.ready >= 2

        assert [cup.number for cup in kitchen.alive] == [3, 4]
        assert pool.statistics().retired == 2


async def test_when_the_maker_changes_all_that_is_ready_is_replaced_one_at_a_time() -> None:
    kitchen = Kitchen()
    async with pool_of(kitchen, ready=3, max_ready_age=10**6) as pool:
        await settle()
        used = await pool.acquire()
        await settle()
        kitchen.glaze = "green"
        pool.change(Sizes(ready=3))
        fewest = 3
        while pool.statistics().outdated:
            fewest = min(fewest, len(pool.ready))
            assert sum(not cup.is_discarded for cup in kitchen.cups) <= 1 + 3 + 1
            await asyncio.sleep(0.1)
        await settle()

        assert fewest == 3
        assert [cup.glaze for cup in pool.ready] == ["green"] * 3
        assert not used.is_discarded


async def test_an_outdated_one_is_handed_out_only_where_there_is_no_other() -> None:
    kitchen = Kitchen()
    async with pool_of(kitchen, ready=2) as pool:
        await settle()
        kitchen.glaze = "green"
        assert (await pool.acquire()).glaze == "blue"
        pool.change(Sizes(ready=2))
        while all(cup.glaze == "blue" for cup in pool.ready):
            await asyncio.sleep(0.1)

        assert (await pool.acquire()).glaze == "green"


async def test_what_is_no_longer_acceptable_is_nobodys() -> None:
    kitchen = Kitchen()
    async with pool_of(kitchen, ready=2, start_concurrency=1) as pool:
        await asyncio.sleep(1.5)  # one stands ready, one is being made
        assert (len(pool.ready), kitchen.starting) == (1, 1)
        kitchen.glaze = "green"
        kitchen.banned.add("blue")
        pool.change(Sizes(ready=2))

        assert (await pool.acquire()).glaze == "green"
        await settle()
        assert [cup.glaze for cup in kitchen.alive] == ["green"] * 3


async def test_what_was_being_started_when_the_maker_changed_is_replaced_too() -> None:
    kitchen = Kitchen()
    async with pool_of(kitchen, ready=1) as pool:
        await asyncio.sleep(0.5)
        kitchen.glaze = "green"
        pool.change(Sizes(ready=1))
        await settle()

        assert [cup.glaze for cup in kitchen.alive] == ["green"]


async def test_a_pool_can_be_made_larger_and_smaller() -> None:
    kitchen = Kitchen()
    async with pool_of(kitchen, ready=1, max_sessions=1) as pool:
        await settle()
        cup = await pool.acquire()
        pool.change(Sizes(ready=3, max_sessions=4))
        await settle()
        assert len(pool.ready) == 3

        pool.change(Sizes(ready=0, max_sessions=1))
        await settle()

        assert kitchen.alive == [cup]
        with pytest.raises(SessionLimitReached):
            await pool.acquire()


async def test_after_failures_it_waits_longer_and_longer_and_recovers() -> None:
    kitchen = Kitchen()
    kitchen.failures = 6
    async with pool_of(kitchen, ready=1, start_concurrency=1) as pool:
        await asyncio.sleep(120)

        gaps = [later - earlier for earlier, later in zip(kitchen.starts, kitchen.starts[1:], strict=False)]
        assert all(0.25 * 2**n <= gap - 1 <= 0.5 * 2**n + 0.1 for n, gap in enumerate(gaps))
        assert repr(pool) == "<WarmPool 'cups' [1 ready, 0 starting, 0 in use, 0 waiting]>"
        assert pool.statistics().start_failures == 6


async def test_those_who_wait_are_told_why_nothing_starts() -> None:
    kitchen = Kitchen()
    kitchen.failures = 1000
    async with pool_of(kitchen, ready=0, allocation_timeout=3600) as pool:
        with pytest.raises(StartFailed, match="out of clay"):
            await pool.acquire()


async def test_those_who_wait_while_the_backend_is_away_are_told_to_come_again() -> None:
    kitchen = Kitchen()
    kitchen.failures, kitchen.failure = 1000, BackendUnavailable("the kiln is out")
    async with pool_of(kitchen, ready=0, allocation_timeout=3600) as pool:
        with pytest.raises(BackendUnavailable, match="the kiln is out"):
            await pool.acquire()


async def test_one_failed_start_is_no_reason_to_fail_a_caller() -> None:
    kitchen = Kitchen()
    kitchen.failures = 1
    async with pool_of(kitchen, ready=0) as pool:
        assert (await pool.acquire()).number == 1


async def test_closing_keeps_what_is_ready_and_in_use_for_the_next_one() -> None:
    kitchen = Kitchen()
    async with pool_of(kitchen, ready=1) as pool:
        cup = await pool.acquire()
        await settle()
        ready = pool.ready

    assert len(kitchen.alive) == 2
    async with WarmPool("cups", Sizes(ready=1), kitchen, ready=ready, in_use=[cup]) as successor:
        assert repr(successor) == "<WarmPool 'cups' [1 ready, 0 starting, 1 in use, 0 waiting]>"
        assert await successor.acquire() is ready[0]


async def test_closing_discards_everything_when_told_to() -> None:
    kitchen = Kitchen()
    async with pool_of(kitchen, ready=2) as pool:
        await pool.acquire()
        await asyncio.sleep(0.5)

        await pool.aclose(discard=True)

    assert kitchen.alive == []
    assert kitchen.starting == 0


async def test_closing_refuses_those_who_wait_and_those_who_come() -> None:
    async with pool_of(Kitchen(), ready=0) as pool:
        waiting = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0)

    for acquiring in (waiting, pool.acquire()):
        with pytest.raises(GatewayDraining):
            await acquiring


async def test_one_that_cannot_be_discarded_is_reported_and_its_place_is_free() -> None:
    class Stuck(Kitchen):
        async def discard(self, item: Cup) -> None:
            raise OSError("glued")

    async with pool_of(Stuck(), ready=0, max_sessions=1) as pool:
        cup = await pool.acquire()

        assert not await pool.discard(cup)
        assert (await pool.acquire()).number == 2


async def test_a_waiter_who_left_refuses() -> None:
    waiter: Waiter[int] = Waiter()

    assert waiter.leave() is None
    assert not waiter.give(1)
    assert not waiter.fail(ValueError())


async def test_a_waiter_takes_one_thing_only() -> None:
    waiter: Waiter[int] = Waiter()

    assert waiter.give(1)
    assert not waiter.give(2)
    assert waiter.leave() == 1


steps = st.lists(st.tuples(st.sampled_from(["acquire", "leave", "return", "kill", "pass"]), st.integers(0, 9)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps, st.integers(0, 3), st.integers(3, 5), st.integers(0, 4))
def test_whatever_happens_nothing_is_lost_and_the_maximum_holds(
    steps: list[tuple[str, int]], ready: int, most: int, failures: int
) -> None:
    async def story() -> None:
        kitchen = Kitchen()
        kitchen.failures = failures
        async with pool_of(kitchen, ready=ready, max_sessions=most) as pool:
            callers: list[asyncio.Task[Cup]] = []
            mine: list[Cup] = []
            for step, number in steps:
                await _one_step(step, number, pool, kitchen, callers, mine)
                check(pool.statistics().now, kitchen)
            for caller in callers:
                caller.cancel()
            for caller in callers:
                with suppress(asyncio.CancelledError, SessionLimitReached, StartFailed, AllocationTimeout):
                    mine.append(await caller)
            await asyncio.sleep(1000)

            assert len({cup.number for cup in mine}) == len(mine)
            now = pool.statistics().now
            assert now == Snapshot(ready=min(ready, most - now.in_use), in_use=now.in_use)
            assert len(kitchen.alive) == now.total

    def check(now: Snapshot, kitchen: Kitchen) -> None:
        assert now.total <= most
        assert kitchen.most_alive <= most
        assert not (now.ready and now.waiting)

    async def with_clock() -> None:
        with virtual_time():
            await story()

    with asyncio.Runner() as runner:
        runner.run(with_clock())


async def _one_step(
    step: str,
    number: int,
    pool: WarmPool[Cup],
    kitchen: Kitchen,
    callers: list[asyncio.Task[Cup]],
    mine: list[Cup],
) -> None:
    match step:
        case "acquire":
            callers.append(asyncio.create_task(pool.acquire()))
        case "leave" if callers:
            callers[number % len(callers)].cancel()
        case "return" if any(caller.done() and not caller.cancelled() and not caller.exception() for caller in callers):
            done = next(c for c in callers if c.done() and not c.cancelled() and not c.exception())
            callers.remove(done)
            mine.append(done.result())
            pool.discard(done.result())
        case "kill" if pool.ready and not pool.ready[0].broken.done():
            pool.ready[0].broken.set_result("killed")
        case "pass":
            await asyncio.sleep(number / 4)
    await asyncio.sleep(0)
