"""Watch: what one caller does with one session, as spans, counts and lines of the audit log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from opentelemetry.trace import Span

from kernelpool.errors import KernelpoolError
from kernelpool.models import ExecuteRequest, Execution
from kernelpool.telemetry import Telemetry
from kernelpool.telemetry.audit import Action, Entry
from kernelpool.telemetry.endings import Endings
from kernelpool.telemetry.observer import Direction
from kernelpool.telemetry.tracing import traceparent
from kernelpool.telemetry.words import outcome

DIRECTIONS: dict[Action, Direction] = {Action.UPLOAD: "in", Action.DOWNLOAD: "out"}


@dataclass(frozen=True, slots=True)
class Who:
    """The caller, as the audit log names him."""

    tenant: str
    principal: str


class Act:
    """Something under way. What is said of it here stands in the audit log at its end."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self.size = 0
        self.outcome = "succeeded"
        self.code: str | None = None
        self.execution = ""

    def traced(self, headers: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
        """Headers of what is passed on, so that the trace goes on there, below this."""
        if (parent := traceparent(self.span)) is None:
            return tuple(headers)
        return (*(each for each in headers if each[0].lower() != "traceparent"), ("traceparent", parent))

    async def counted(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The same, and its size is known."""
        async for chunk in chunks:
            self.size += len(chunk)
            yield chunk


class Watch:
    def __init__(self, telemetry: Telemetry, endings: Endings, who: Who, pool: str, session: str) -> None:
        self._telemetry = telemetry
        self._endings = endings
        self._who = who
        self._pool = pool
        self._session = session

    @contextmanager
    def executing(self, request: ExecuteRequest) -> Iterator[_Executing]:
        """What it yields has the request to send, and wants to hear the answer."""
        with self.acting(Action.EXECUTE) as act:
            act.size, act.code = len(request.code.encode(errors="surrogatepass")), request.code
            act.execution = request.id
            self._endings.begin(self._session, request.id, act.span.get_span_context())
            yield _Executing(self, act, replace(request, traceparent=traceparent(act.span)))

    @contextmanager
    def acting(self, action: Action) -> Iterator[Act]:
        began = time.monotonic()
        facts = {"kernelpool.pool": self._pool, "kernelpool.session": self._session}
        with self._telemetry.tracing.span(action.value, facts) as span:
            act = Act(span)
            try:
                yield act
            except BaseException as error:
                act.outcome = _outcome_of(error)
                raise
            finally:
                self._over(action, act, time.monotonic() - began)

    @contextmanager
    def relaying(self, id: str, code: str) -> Iterator[Act]:
        """An execution of a Jupyter client, of which no more is seen than its messages."""
        with self.acting(Action.EXECUTE) as act:
            act.size, act.code, act.execution = len(code.encode(errors="surrogatepass")), code, id
            self._endings.begin(self._session, id, act.span.get_span_context())
            yield act

    def left(self, outcome: str, seconds: float) -> None:
        """A Jupyter client that was connected. No span: it may have been there for days."""
        self._record(Action.CONNECT, outcome, seconds=seconds)

    def learned(self, execution: Execution) -> Execution:
        """Whoever asks after an execution passes the answer through here: it may have ended."""
        if (seconds := self.ended(execution)) is not None:
            self._record(Action.EXECUTE, outcome(execution), execution=execution.id, seconds=seconds)
        return execution

    def ended(self, execution: Execution) -> float | None:
        """As `Endings.end`."""
        return self._endings.end(self._pool, self._session, execution)

    def _over(self, action: Action, act: Act, seconds: float) -> None:
        act.span.set_attributes({"kernelpool.bytes": act.size, "kernelpool.outcome": act.outcome})
        if (direction := DIRECTIONS.get(action)) is not None:
            self._telemetry.observer.transferred(self._pool, direction, act.size)
        self._record(action, act.outcome, execution=act.execution, size=act.size, seconds=seconds, code=act.code)

    def _record(self, action: Action, outcome: str, **facts: Any) -> None:
        who = self._who
        self._telemetry.audit.record(
            Entry(action, outcome, who.tenant, who.principal, self._pool, self._session, **facts)
        )


class _Executing:
    def __init__(self, watch: Watch, act: Act, request: ExecuteRequest) -> None:
        self._watch = watch
        self._act = act
        self.request = request

    def answered(self, execution: Execution) -> Execution:
        """As it ended, or as it stands: what is submitted is queued at first."""
        self._act.outcome = outcome(execution)
        self._watch.ended(execution)
        return execution


def _outcome_of(error: BaseException) -> str:
    if isinstance(error, KernelpoolError):
        return error.code
    return "client_left" if isinstance(error, asyncio.CancelledError | GeneratorExit) else KernelpoolError.code
