"""Metrics: names as Prometheus wants them, labels that nobody outside can multiply."""

from __future__ import annotations

import math

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kernelpool.models import EndCause, Execution, ExecutionState, SessionEnd
from kernelpool.telemetry.metrics import CollectorRegistry, Metrics
from kernelpool.telemetry.readings import PoolReading, SessionReading, age_group
from kernelpool.telemetry.words import OUTCOMES, cause_of_death, outcome
from tests.promtool import needs_promtool, promtool


def pool_reading(*sessions: SessionReading) -> PoolReading:
    return PoolReading("python", 3, 1, 2, 0, 4, 3, 10, 7, 1, 2, 1, 1, 5, 0, sessions)


def execution(cause: EndCause = EndCause.COMPLETED, **facts: object) -> Execution:
    state = ExecutionState.SUCCEEDED if cause is EndCause.COMPLETED else ExecutionState.FAILED
    return Execution("e", state, 0.0, cause=cause, **facts)  # type: ignore[arg-type]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


def lived_through(metrics: Metrics) -> None:
    """Everything that an observer can be told."""
    metrics.allocated("python", 0.01, warm=True)
    metrics.allocated("python", 2.0, warm=False)
    for cause in EndCause:
        metrics.executed("python", execution(cause, interrupted=True, state_lost_during="the kernel exited"), 0.1, 0.0)
    metrics.transferred("python", "in", 10)
    metrics.session_ended("python", SessionEnd.UNUSED)
    metrics.sandbox_started("python", 1.5)
    metrics.refused("Unauthorized")
    metrics.answered("GET", "/pools", 200, 0.01)
    metrics.moved("/pools", 1, 2)
    metrics.lagged(0.0)
    metrics.audited(1)
    metrics.audited(1, lost=True)


def samples(metrics: Metrics, *sessions: SessionReading) -> dict[tuple[str, tuple[str, ...]], float]:
    """By name and values of the labels, these in the order of the labels' names."""
    text = metrics.render([pool_reading(*sessions)]).decode()
    families = text_string_to_metric_families(text)
    return {
        (s.name, tuple(v for _, v in sorted(s.labels.items()))): s.value for family in families for s in family.samples
    }


@needs_promtool
def test_promtool_has_nothing_to_say(metrics: Metrics) -> None:
    lived_through(metrics)

    assert promtool("check", "metrics", stdin=metrics.render([pool_reading(SessionReading("guid", 5.0))])) == ""


@needs_promtool
def test_promtool_would_say_it() -> None:
    assert "counter metrics should have" in promtool("check", "metrics", stdin=b"# HELP a b\n# TYPE a counter\na 1\n")


def test_acas_three_metrics_are_there(metrics: Metrics) -> None:
    seen = samples(metrics)

    assert seen["kernelpool_pool_ready", ("python",)] == 3
    assert seen["kernelpool_pool_pending", ("python",)] == 1
    assert seen["kernelpool_pool_executing", ("python",)] == 2


def test_every_session_is_in_one_group_of_ages(metrics: Metrics) -> None:
    ages = [0.0, 59.9, 60.0, 599.0, 3600.0, 90000.0]

    seen = samples(metrics, *(SessionReading(str(n), age) for n, age in enumerate(ages)))

    assert sum(value for (name, _), value in seen.items() if name == "kernelpool_sessions") == len(ages)
    assert seen["kernelpool_sessions", ("under 1m", "python")] == 2
    assert seen["kernelpool_session_oldest_age_seconds", ("python",)] == 90000
    assert age_group(math.inf) == "over 1d"


def test_what_a_hostile_agent_says_drowns_nothing(metrics: Metrics) -> None:
    lies = SessionReading("guid", 1.0, running=-5, cpu_seconds=math.nan, memory_bytes=10**40, workspace_bytes=-1)

    seen = samples(metrics, lies)

    assert seen["kernelpool_executions_running", ("python",)] == 0
    assert seen["kernelpool_session_cpu_seconds_total", ("python", "guid")] == 0
    assert seen["kernelpool_session_memory_bytes", ("python", "guid")] == 1e15


def test_a_method_that_somebody_invents_is_no_series_of_its_own(metrics: Metrics) -> None:
    for number in range(100):
        metrics.answered(f"BREW{number}", "/pools", 405, 0.1)

    series = {labels for name, labels in samples(metrics) if name == "http_server_request_duration_seconds_count"}
    assert series == {("_OTHER", "405", "/pools")}


def test_every_cause_has_its_word() -> None:
    assert set(OUTCOMES) == set(EndCause)
    assert outcome(Execution("e", ExecutionState.QUEUED, 0.0)) == "queued"


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ("the kernel was killed (SIGKILL), most likely because it ran out of memory", "killed"),
        ("the kernel crashed (SIGSEGV)", "crashed"),
        ("the kernel exited with code 3", "exited"),
        ("the kernel was restarted: an execution was canceled and ignored the interrupt", "restarted"),
        ("whatever a hostile agent makes up", "other"),
    ],
)
def test_a_death_has_a_cause_of_a_few(said: str, word: str) -> None:
    assert cause_of_death(execution(EndCause.KERNEL_DIED, state_lost_during=said)) == word
    assert cause_of_death(execution()) is None


def test_the_words_for_deaths_are_how_the_agent_begins() -> None:
    from kernelpool.agent.process import describe_death

    words = [cause_of_death(execution(state_lost_during=describe_death(code))) for code in (-9, -11, 1)]

    assert words == ["killed", "crashed", "exited"]
