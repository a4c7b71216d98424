"""The life of a session, as arithmetic: what lengthens it, and by how much."""

from __future__ import annotations

import pytest

from kernelpool.journal import Record
from kernelpool.life import LiveSession
from kernelpool.models import AgentStatus
from kernelpool.pool.launcher import Connected
from kernelpool.pool.settings import PoolSettings, sandbox_spec
from tests.fakes import RUNTIME, FakeAgent, FakeBackend, FakeSandbox

COOLDOWN, MAX_ALIVE = 100.0, 1000.0


@pytest.fixture
async def live() -> LiveSession:
    """Created and used at 0."""
    settings = PoolSettings(cooldown=COOLDOWN, max_alive=MAX_ALIVE)
    sandbox = FakeSandbox(FakeBackend(), sandbox_spec(settings, RUNTIME))
    record = Record(
        sandbox=sandbox.id, pool="default", tenant="t", identifier="user", session="s", created_at=1_000_000.0
    )
    return LiveSession(record, Connected(sandbox, FakeAgent(sandbox.process)), settings, used_at=0.0, created_at=0.0)


def idle(seconds: float, running: int = 0, queued: int = 0) -> AgentStatus:
    return AgentStatus(True, True, running, queued, seconds)


@pytest.mark.parametrize(
    ("now", "over"),
    [
        (0.0, None),
        (99.9, None),
        (100.0, "it was not used for 100 s"),
        (1000.0, "it reached its longest life of 1000 s"),
    ],
)
async def test_it_is_over_at_its_cooldown_or_its_longest_life(live: LiveSession, now: float, over: str | None) -> None:
    assert live.why_over(now) == over


@pytest.mark.parametrize(
    ("status", "until"),
    [
        pytest.param(idle(30), 170, id="the cooldown counts from the last activity that the agent knows of"),
        pytest.param(idle(0), 200, id="which may be now"),
        pytest.param(idle(500, running=1), 200, id="what runs is activity"),
        pytest.param(idle(500, queued=1), 200, id="so is what waits to run"),
        pytest.param(idle(100), 100, id="what it does not know of does not shorten a life"),
        pytest.param(idle(99.9999), 101, id="no sooner asked again than after a second"),
        pytest.param(idle(-1e300), 200, id="activity in the future is activity now"),
        pytest.param(idle(float("inf")), 100, id="infinity is long ago"),
        pytest.param(idle(float("nan")), 100, id="what is no number says nothing"),
    ],
)
async def test_what_the_agent_says_at_the_end_of_the_cooldown(
    live: LiveSession, status: AgentStatus, until: float
) -> None:
    live.learn(status, now=100)

    assert live.next_look(now=100) == pytest.approx(until)


async def test_nothing_lengthens_it_beyond_its_longest_life(live: LiveSession) -> None:
    live.learn(idle(0, running=1), now=990)

    with live.hold():
        assert live.next_look(now=990) == MAX_ALIVE
        assert live.why_over(now=1000) is not None


async def test_while_held_it_is_used_now(live: LiveSession) -> None:
    with live.hold():
        assert live.why_over(now=500) is None
        assert live.describe(now=500, epoch=10_000).last_accessed_at == 10_500
        assert live.describe(now=500, epoch=10_000).expires_at == 10_600
