"""What operators see of a gateway: logs, metrics, traces, the audit log. Other rooms know `Telemetry` and no more."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from opentelemetry.trace import Span

from kernelpool.telemetry.audit import Audit, Unaudited
from kernelpool.telemetry.observer import Observer, Silent
from kernelpool.telemetry.tracing import Tracing


@dataclass(frozen=True, slots=True)
class Telemetry:
    """Where to tell of what happens. By default nobody listens."""

    observer: Observer = field(default_factory=Silent)
    tracing: Tracing = field(default_factory=Tracing)
    audit: Audit = field(default_factory=Unaudited)

    @contextmanager
    def allocating(self, pool: str, *, warm: bool) -> Iterator[Span]:
        """A new session, from the wish for it until it is there. `warm`: a sandbox stands ready."""
        began = time.monotonic()
        facts = {"kernelpool.pool": pool, "kernelpool.start": "warm" if warm else "cold"}
        with self.tracing.span("allocate", facts) as span:
            yield span
            self.observer.allocated(pool, time.monotonic() - began, warm=warm)

    def sandbox_started(self, pool: str, seconds: float, failure: str | None = None) -> None:
        """A trace of its own: nobody asked for this very one. `failure` is an error's code."""
        now = time.time()
        facts = {"kernelpool.pool": pool, **({"error.type": failure} if failure else {})}
        self.tracing.past("start sandbox", None, now - seconds, now, facts)
        if failure is None:
            self.observer.sandbox_started(pool, seconds)


SILENT = Telemetry()
"""Nobody listens."""
