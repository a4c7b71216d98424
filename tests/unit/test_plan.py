"""The arithmetic of a pool: what is started, what is retired, and what never happens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelpool.pool.plan import LONGEST_DELAY, Sizes, Snapshot, Step, is_full, plan, retry_delay

SIZES = Sizes(ready=2, max_sessions=5, start_concurrency=2)


@pytest.mark.parametrize(
    ("now", "aged", "step"),
    [
        pytest.param(Snapshot(), 0, Step(start=2), id="an empty pool fills up"),
        pytest.param(Snapshot(starting=2), 0, Step(), id="what is starting counts"),
        pytest.param(Snapshot(ready=2), 0, Step(), id="a full one rests"),
        pytest.param(Snapshot(ready=1, in_use=1), 0, Step(start=1), id="what was handed out is replaced"),
        pytest.param(Snapshot(waiting=3), 0, Step(start=2), id="no more at once than allowed"),
        pytest.param(Snapshot(starting=1, waiting=3), 0, Step(start=1), id="also when some are starting"),
        pytest.param(Snapshot(ready=1, in_use=4), 0, Step(), id="the maximum counts everything"),
        pytest.param(Snapshot(in_use=4), 0, Step(start=1), id="as many ready as there is room"),
        pytest.param(Snapshot(in_use=4, leaving=1, waiting=1), 0, Step(), id="what is leaving still takes its place"),
        pytest.param(Snapshot(in_use=7), 0, Step(), id="adopted beyond the maximum"),
        pytest.param(Snapshot(ready=4), 0, Step(retire=2), id="too many ready"),
        pytest.param(Snapshot(ready=2, in_use=4), 0, Step(retire=1), id="ready ones go when there are too many in all"),
        pytest.param(Snapshot(ready=2), 2, Step(start=1), id="an old one: first a fresh one"),
        pytest.param(Snapshot(ready=2, starting=1), 2, Step(), id="and it is waited for"),
        pytest.param(Snapshot(ready=3), 1, Step(retire=1), id="then the old one goes"),
        pytest.param(Snapshot(ready=2, in_use=3), 1, Step(retire=1), id="at once when there is no room for both"),
        pytest.param(Snapshot(ready=1, leaving=1, in_use=3), 1, Step(), id="one at a time"),
    ],
)
def test_what_is_done(now: Snapshot, aged: int, step: Step) -> None:
    assert plan(now, SIZES, aged) == step


def test_nothing_starts_while_starts_are_held_back() -> None:
    assert plan(Snapshot(waiting=1), SIZES, at_once=0) == Step()


counts = st.integers(0, 12)
snapshots = st.builds(Snapshot, counts, counts, counts, counts, counts)
sizes = st.integers(1, 10).flatmap(
    lambda most: st.builds(
        Sizes, ready=st.integers(0, most), max_sessions=st.just(most), start_concurrency=st.integers(1, 4)
    )
)


@given(snapshots, sizes, st.data())
def test_whatever_the_state_the_limits_hold(now: Snapshot, sizes: Sizes, data: st.DataObject) -> None:
    step = plan(now, sizes, data.draw(st.integers(0, now.ready)))

    assert step.start >= 0
    assert 0 <= step.retire <= now.ready
    assert step.start == 0 or now.total + step.start <= sizes.max_sessions
    assert step.start == 0 or now.starting + step.start <= sizes.start_concurrency
    assert not (step.start and step.retire)


@given(sizes, st.integers(0, 10), st.integers(0, 10), st.integers(0, 3))
def test_left_alone_it_settles_and_then_rests(sizes: Sizes, ready: int, in_use: int, aged: int) -> None:
    """Every start succeeds, every retired one leaves: no state in which it starts and retires for ever."""
    aged = min(aged, ready)
    for _ in range(60):
        step = plan(Snapshot(ready=ready, in_use=in_use), sizes, aged)
        if step == Step():
            break
        aged = max(0, aged - step.retire)
        ready += step.start - step.retire

    assert step == Step()
    assert aged == 0
    assert ready == min(sizes.ready, max(0, sizes.max_sessions - in_use))


@given(sizes, counts, counts)
def test_whoever_is_let_in_line_can_be_served(sizes: Sizes, in_use: int, waiting: int) -> None:
    now = Snapshot(in_use=in_use, waiting=waiting)

    assert is_full(now, sizes) == (in_use + waiting + 1 > sizes.max_sessions)


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_the_delay_after_failures_is_bounded_and_never_nothing(failures: int, luck: float) -> None:
    assert 0.25 <= retry_delay(failures, luck) <= LONGEST_DELAY


def test_the_delay_doubles() -> None:
    assert [retry_delay(failures, 0.0) for failures in (1, 2, 3, 4)] == [0.5, 1.0, 2.0, 4.0]
