"""What a scrape reads off the gateway's state, and the metrics that it becomes. Nothing is counted here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily


@dataclass(frozen=True, slots=True)
class SessionReading:
    """What the gateway knows of a session, and what its agent last said of it: types are certain, truth is not."""

    guid: str
    age: float
    running: int = 0
    queued: int = 0
    cpu_seconds: float = 0.0
    memory_bytes: int = 0
    workspace_bytes: int = 0


@dataclass(frozen=True, slots=True)
class PoolReading:
    """A pool at one moment, and what it counted since it was opened."""

    name: str
    ready: int
    starting: int
    in_use: int
    leaving: int
    waiting: int
    wanted_ready: int
    max_sessions: int
    started: int
    start_failures: int
    handed_out: int
    died_ready: int
    retired: int
    discarded: int
    discard_failures: int
    sessions: tuple[SessionReading, ...]


_POOL = ("pool",)
_SESSION = ("pool", "session")

# Name, what it says, the field.
_GAUGES = [
    ("kernelpool_pool_ready", "Sandboxes that stand ready. ACA: PoolReadyPodCount.", "ready"),
    ("kernelpool_pool_pending", "Sandboxes that are starting. ACA: PoolPendingPodCount.", "starting"),
    ("kernelpool_pool_executing", "Sandboxes that sessions have. ACA: PoolExecutingPodCount.", "in_use"),
    ("kernelpool_pool_leaving", "Sandboxes that are being destroyed.", "leaving"),
    ("kernelpool_pool_waiting", "Callers who wait for a sandbox: the length of the queue.", "waiting"),
    ("kernelpool_pool_wanted_ready", "Sandboxes that the settings want ready.", "wanted_ready"),
    ("kernelpool_pool_max_sessions", "Sandboxes that may exist at the same time.", "max_sessions"),
]
_COUNTERS = [
    ("kernelpool_sandbox_starts", "Sandboxes that got ready.", "started"),
    ("kernelpool_sandbox_start_failures", "Sandboxes that did not start: failed refills.", "start_failures"),
    ("kernelpool_sandbox_handovers", "Sandboxes handed out, each once in its life.", "handed_out"),
    ("kernelpool_sandbox_discard_failures", "Sandboxes that could not be destroyed.", "discard_failures"),
]
# Why a sandbox was discarded, and the field.
_DISCARDS = [("died_ready", "died_ready"), ("retired", "retired"), ("used", "discarded")]
_USAGE = [
    ("kernelpool_session_memory_bytes", "Memory that a session uses, by its agent's account.", "memory_bytes"),
    ("kernelpool_session_workspace_bytes", "Bytes of a session's files, by its agent's account.", "workspace_bytes"),
]
_AGES = [(60.0, "under 1m"), (600.0, "1m to 10m"), (3600.0, "10m to 1h"), (21600.0, "1h to 6h"), (86400.0, "6h to 1d")]
_OLDEST = "over 1d"


def metrics_of(pools: Iterable[PoolReading]) -> Iterator[Metric]:
    """One series a pool, and one a live session: bounded by `max_sessions`."""
    pools = tuple(pools)
    for name, text, field in _GAUGES:
        gauge = GaugeMetricFamily(name, text, labels=_POOL)
        for pool in pools:
            gauge.add_metric([pool.name], getattr(pool, field))
        yield gauge
    for name, text, field in _COUNTERS:
        counter = CounterMetricFamily(name, text, labels=_POOL)
        for pool in pools:
            counter.add_metric([pool.name], getattr(pool, field))
        yield counter
    yield _discards(pools)
    yield from _ages(pools)
    yield from _work(pools)
    yield from _usage(pools)


def age_group(age: float) -> str:
    return next((name for limit, name in _AGES if age < limit), _OLDEST)


def _discards(pools: Iterable[PoolReading]) -> Metric:
    family = CounterMetricFamily("kernelpool_sandbox_discards", "Sandboxes discarded.", labels=("pool", "why"))
    for pool in pools:
        for why, field in _DISCARDS:
            family.add_metric([pool.name, why], getattr(pool, field))
    return family


def _ages(pools: Iterable[PoolReading]) -> Iterator[Metric]:
    count = GaugeMetricFamily("kernelpool_sessions", "Live sessions by age; each in one group.", labels=("pool", "age"))
    oldest = GaugeMetricFamily("kernelpool_session_oldest_age_seconds", "Age of the oldest session.", labels=_POOL)
    for pool in pools:
        groups = [age_group(session.age) for session in pool.sessions]
        for name in [*(name for _, name in _AGES), _OLDEST]:
            count.add_metric([pool.name, name], groups.count(name))
        oldest.add_metric([pool.name], max((session.age for session in pool.sessions), default=0.0))
    yield count
    yield oldest


def _work(pools: Iterable[PoolReading]) -> Iterator[Metric]:
    running = GaugeMetricFamily("kernelpool_executions_running", "Executions that run now.", labels=_POOL)
    queued = GaugeMetricFamily("kernelpool_executions_queued", "Executions that wait behind others.", labels=_POOL)
    for pool in pools:
        running.add_metric([pool.name], sum(_sane(session.running) for session in pool.sessions))
        queued.add_metric([pool.name], sum(_sane(session.queued) for session in pool.sessions))
    yield running
    yield queued


def _usage(pools: Iterable[PoolReading]) -> Iterator[Metric]:
    cpu = CounterMetricFamily(
        "kernelpool_session_cpu_seconds", "CPU time that a session used, by its agent's account.", labels=_SESSION
    )
    for pool in pools:
        for session in pool.sessions:
            cpu.add_metric([pool.name, session.guid], _sane(session.cpu_seconds))
    yield cpu
    for name, text, field in _USAGE:
        gauge = GaugeMetricFamily(name, text, labels=_SESSION)
        for pool in pools:
            for session in pool.sessions:
                gauge.add_metric([pool.name, session.guid], _sane(getattr(session, field)))
        yield gauge


def _sane(value: float) -> float:
    """A hostile agent may say anything: no NaN, nothing below zero, nothing that drowns an honest sum."""
    return min(value, 1e15) if math.isfinite(value) and value > 0 else 0.0
