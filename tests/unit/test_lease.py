"""When an agent ends itself."""

from __future__ import annotations

import pytest

from kernelpool.agent.lease import GRACE, Lease
from kernelpool.models import Activation


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("kernelpool.agent.lease.time", clock)
    return clock


def test_a_ready_sandbox_waits_for_its_lease(clock: Clock) -> None:
    lease = Lease(100, lambda: False)
    clock.now += 60
    assert lease.remaining == 40

    lease.heard()

    assert lease.remaining == 100


def test_a_session_outlives_silence_for_its_cooldown(clock: Clock) -> None:
    lease = Lease(100, lambda: False)
    lease.activate(Activation("s", cooldown=30, max_alive=1000))
    clock.now += 30

    assert lease.remaining == GRACE


def test_silence_does_not_count_while_something_runs(clock: Clock) -> None:
    lease = Lease(100, lambda: True)
    lease.activate(Activation("s", cooldown=30, max_alive=1000))
    clock.now += 500

    assert lease.remaining == 500 + GRACE


def test_nothing_lives_longer_than_it_may(clock: Clock) -> None:
    lease = Lease(100, lambda: True)
    lease.activate(Activation("s", cooldown=30, max_alive=1000))
    clock.now += 1000
    lease.heard()

    assert lease.remaining == GRACE


def test_activation_happens_once() -> None:
    lease = Lease(100, lambda: False)

    assert lease.activate(Activation("a", 1, 1))
    assert not lease.activate(Activation("b", 1, 1))
    assert lease.activation == Activation("a", 1, 1)
