"""Metrics: an Observer that counts, and the text that Prometheus reads.

Names and units follow the conventions of Prometheus, and of OpenTelemetry where it has a name for the thing. No label
holds what a caller or a session can choose.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from prometheus_client import Counter, Gauge, Histogram, Metric, exposition
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import CollectorRegistry

from kernelpool import __version__
from kernelpool.models import Execution, SessionEnd
from kernelpool.telemetry.observer import Direction
from kernelpool.telemetry.readings import PoolReading, metrics_of
from kernelpool.telemetry.words import cause_of_death, outcome

__all__ = ["CONTENT_TYPE", "CollectorRegistry", "Metrics"]

CONTENT_TYPE = exposition.CONTENT_TYPE_PLAIN_0_0_4

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LONG = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_START = (0.1, 0.25, 0.5, 1, 1.5, 2, 3, 5, 10, 20, 30, 60)
_HTTP = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""As OpenTelemetry advises for http.server.request.duration."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """All that is counted in one process. An `Observer`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        ProcessCollector(registry=registry)
        build = Gauge("kernelpool_build_info", "1; the version is in the label.", ["version"], registry=registry)
        build.labels(__version__).set(1)
        self._count_pools(registry)
        self._count_requests(registry)
        self._lag = Histogram(
            "kernelpool_event_loop_lag_seconds", "How late the event loop was.", buckets=_FAST, registry=registry
        )

    def __repr__(self) -> str:
        return f"<Metrics [{len(list(self._registry.collect()))} families]>"

    def render(self, pools: Sequence[PoolReading]) -> bytes:
        """Slow with many sessions, and it reads files: not for the event loop. Any thread may call it."""
        return exposition.generate_latest(_Sources(self._registry, pools))

    # --- as an Observer

    def allocated(self, pool: str, seconds: float, *, warm: bool) -> None:
        self._allocations.labels(pool, "warm" if warm else "cold").observe(seconds)

    def executed(self, pool: str, execution: Execution, ran: float, queued: float) -> None:
        self._executions.labels(pool, outcome(execution)).inc()
        self._runs.labels(pool).observe(ran)
        self._queues.labels(pool).observe(queued)
        if execution.interrupted:
            self._interrupts.labels(pool).inc()
        if (cause := cause_of_death(execution)) is not None:
            self._deaths.labels(pool, cause).inc()

    def transferred(self, pool: str, direction: Direction, size: int) -> None:
        self._files.labels(pool, direction).inc(size)

    def session_ended(self, pool: str, end: SessionEnd) -> None:
        self._ends.labels(pool, end.value).inc()

    def sandbox_started(self, pool: str, seconds: float) -> None:
        self._starts.labels(pool).observe(seconds)

    def pool_closed(self, pool: str) -> None:
        of_pools: tuple[Counter | Histogram, ...] = (
            self._allocations,
            self._executions,
            self._runs,
            self._queues,
            self._interrupts,
            self._deaths,
            self._files,
            self._ends,
            self._starts,
            self._egress,
        )
        for metric in of_pools:
            metric.remove_by_labels({"pool": pool})

    def egress_decided(self, pool: str, outcome: str, count: int) -> None:
        self._egress.labels(pool, outcome).inc(count)

    def refused(self, code: str) -> None:
        self._refusals.labels(code).inc()

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        # Whoever invents methods must not make series of them; OpenTelemetry's word for those is _OTHER.
        method = method if method in _METHODS else "_OTHER"
        self._requests.labels(method, route, str(status)).observe(seconds)

    def moved(self, route: str, received: int, sent: int) -> None:
        self._received.labels(route).inc(received)
        self._sent.labels(route).inc(sent)

    def lagged(self, seconds: float) -> None:
        self._lag.observe(seconds)

    def audited(self, count: int, *, lost: bool = False) -> None:
        (self._audit_lost if lost else self._audited).inc(count)

    # --- what there is

    def _count_pools(self, to: CollectorRegistry) -> None:
        self._allocations = Histogram(
            "kernelpool_allocation_seconds",
            "From the wish for a new session until it is there; warm when a sandbox stood ready.",
            ["pool", "start"],
            buckets=_FAST,
            registry=to,
        )
        self._executions = Counter(
            "kernelpool_executions", "Executions that ended, by how.", ["pool", "outcome"], registry=to
        )
        self._runs = Histogram(
            "kernelpool_execution_seconds", "How long code ran.", ["pool"], buckets=_LONG, registry=to
        )
        self._queues = Histogram(
            "kernelpool_execution_queue_seconds",
            "How long code waited for its turn in its session.",
            ["pool"],
            buckets=_LONG,
            registry=to,
        )
        self._interrupts = Counter("kernelpool_interrupts", "Executions interrupted.", ["pool"], registry=to)
        self._deaths = Counter(
            "kernelpool_kernel_deaths", "Kernels that ended while code ran, by cause.", ["pool", "cause"], registry=to
        )
        self._files = Counter("kernelpool_file_bytes", "Bytes of files.", ["pool", "direction"], registry=to)
        self._ends = Counter("kernelpool_sessions_ended", "Sessions that ended, by why.", ["pool", "why"], registry=to)
        self._starts = Histogram(
            "kernelpool_sandbox_start_seconds",
            "How long sandboxes took to get ready.",
            ["pool"],
            buckets=_START,
            registry=to,
        )
        self._egress = Counter(
            "kernelpool_egress_decisions",
            "Connections that sandboxes with a list of domains asked for, by what the proxy decided.",
            ["pool", "outcome"],
            registry=to,
        )

    def _count_requests(self, to: CollectorRegistry) -> None:
        self._refusals = Counter(
            "kernelpool_refusals", "Requests answered with an error, by its code.", ["code"], registry=to
        )
        self._requests = Histogram(
            "http_server_request_duration_seconds",
            "Requests by the template of their route; status 499: the client left before the answer.",
            ["http_request_method", "http_route", "http_response_status_code"],
            buckets=_HTTP,
            registry=to,
        )
        self._received = Counter(
            "kernelpool_http_received_bytes", "Bytes of request bodies.", ["http_route"], registry=to
        )
        self._sent = Counter("kernelpool_http_sent_bytes", "Bytes of response bodies.", ["http_route"], registry=to)
        self._audited = Counter("kernelpool_audit_records", "Lines for the audit log.", registry=to)
        self._audit_lost = Counter("kernelpool_audit_lost", "Lines that the audit log had to drop.", registry=to)


class _Sources:
    """What was counted, and what a scrape reads."""

    def __init__(self, registry: CollectorRegistry, pools: Sequence[PoolReading]) -> None:
        self._registry = registry
        self._pools = pools

    def collect(self) -> Iterator[Metric]:
        for metric in chain(self._registry.collect(), metrics_of(self._pools)):
            # When each series began: a third as many again, and nobody asks.
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
