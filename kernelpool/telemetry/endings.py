"""Endings: tells of the end of each execution once, whoever learns of it first: its caller, a poll, a stream."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from dataclasses import dataclass

from opentelemetry.trace import SpanContext

from kernelpool.models import Execution
from kernelpool.telemetry.observer import Observer
from kernelpool.telemetry.tracing import Tracing
from kernelpool.telemetry.words import cause_of_death, outcome

REMEMBERED = 10_000
"""Executions whose end is awaited, or has been told."""


@dataclass(frozen=True, slots=True)
class _Begun:
    at: float
    span: SpanContext


class Endings:
    """An execution that nobody ever asks about is told of by nobody: the gateway does not follow those."""

    def __init__(self, observer: Observer, tracing: Tracing) -> None:
        self._observer = observer
        self._tracing = tracing
        # Session and execution → how it began; None once its end was told.
        self._known: OrderedDict[tuple[str, str], _Begun | None] = OrderedDict()

    def begin(self, session: str, id: str, span: SpanContext) -> None:
        """Sent again, it is still the same execution."""
        if (session, id) in self._known:
            return
        self._known[session, id] = _Begun(time.time(), span)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

    def end(self, pool: str, session: str, execution: Execution) -> float | None:
        """How many seconds it ran, the first time that its end is told; None before and after."""
        begun = self._known.get((session, execution.id))
        if begun is None or not execution.state.is_final:
            return None
        self._known[session, execution.id] = None
        start, stop = _span_of(execution, begun.at, time.time())
        queued = start - begun.at
        self._observer.executed(pool, execution, stop - start, queued)
        facts = {"kernelpool.pool": pool, "kernelpool.session": session, "kernelpool.outcome": outcome(execution)}
        death = cause_of_death(execution)
        if death:
            facts["kernelpool.kernel_death"] = death
        if execution.started_at is not None:
            self._tracing.past("kernel", begun.span, start, stop, {**facts, "kernelpool.queued_seconds": queued})
        return stop - start


def _span_of(execution: Execution, earliest: float, latest: float) -> tuple[float, float]:
    """When it ran. The agent says so, and may say anything: it cannot have been before it was sent, nor later than
    now. What never ran took no time."""
    if execution.started_at is None:
        return latest, latest
    start = _clamp(execution.started_at, earliest, latest)
    return start, _clamp(execution.finished_at or latest, start, latest)


def _clamp(value: float, lowest: float, highest: float) -> float:
    return lowest if math.isnan(value) else max(lowest, min(value, highest))
