"""Tracing: spans over OpenTelemetry's API, which does nothing as long as nobody gives it more than that.

Every request has a trace id, with tracing or without: the caller's own when he sent a valid `traceparent`. No span
holds an identifier, code, or the text of an error, which may quote either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from secrets import randbits
from typing import Any

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, NoOpTracer, Span, SpanContext, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from kernelpool.errors import CallerError, KernelpoolError, TryLater

__all__ = ["Span", "Tracing", "Value", "blame", "current_ids", "enter", "fail", "trace_id_of", "traceparent"]

Value = str | int | float | bool
_W3C = TraceContextTextMapPropagator()


class Tracing:
    """Makes spans. Without a tracer they are made of nothing but their ids."""

    def __init__(self, tracer: Tracer | None = None) -> None:
        self._tracer = tracer or NoOpTracer()

    def begin_request(self, name: str, headers: Mapping[str, str], attributes: Mapping[str, Value]) -> Span:
        """The span of a caller's request, in his trace when he named one. It is not yet the current one."""
        carrier = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        caller = _W3C.extract(carrier, Context())
        span = self._tracer.start_span(name, caller, SpanKind.SERVER, attributes)
        return span if span.get_span_context().is_valid else NonRecordingSpan(_new_ids())

    @contextmanager
    def span(self, name: str, attributes: Mapping[str, Value]) -> Iterator[Span]:
        """The current one for as long as it takes."""
        span = self._tracer.start_span(name, attributes=attributes, record_exception=False)
        with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            try:
                yield span
            except BaseException as error:
                blame(span, error)
                raise

    def past(
        self, name: str, parent: SpanContext | None, start: float, end: float, attributes: Mapping[str, Value]
    ) -> None:
        """A span of something that is over; times are seconds since the epoch. Without a parent it begins a trace."""
        context = trace.set_span_in_context(NonRecordingSpan(parent), Context()) if parent else Context()
        span = self._tracer.start_span(name, context, attributes=attributes, start_time=_nanoseconds(start))
        span.end(_nanoseconds(end))


def enter(span: Span) -> None:
    """Makes it the current one for the rest of this task, and for the tasks that it starts."""
    contexts.attach(trace.set_span_in_context(span))


def blame(span: Span, error: BaseException) -> None:
    """Says what went wrong in a word. What the caller can mend, or who has left, is no failure of the gateway's."""
    span.set_attribute("error.type", error.code if isinstance(error, KernelpoolError) else type(error).__name__)
    if isinstance(error, Exception) and not isinstance(error, CallerError | TryLater):
        fail(span)


def fail(span: Span) -> None:
    span.set_status(Status(StatusCode.ERROR))


def trace_id_of(span: Span) -> str:
    return f"{span.get_span_context().trace_id:032x}"


def current_ids() -> dict[str, str]:
    """For a log line; empty outside of requests."""
    ids = trace.get_current_span().get_span_context()
    return {"trace_id": f"{ids.trace_id:032x}", "span_id": f"{ids.span_id:016x}"} if ids.is_valid else {}


def traceparent(span: Span) -> str | None:
    """As the agent is told of it."""
    carrier: dict[str, Any] = {}
    _W3C.inject(carrier, trace.set_span_in_context(span, Context()))
    return carrier.get("traceparent")


def _new_ids() -> SpanContext:
    return SpanContext(trace_id=randbits(127) + 1, span_id=randbits(63) + 1, is_remote=False)


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
