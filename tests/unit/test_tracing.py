"""Tracing: ids without an SDK, spans with one, and nothing in them that an agent or an error could put there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from kernelpool.errors import SandboxLost, SessionNotFound
from kernelpool.models import LATEST, EndCause, Execution, ExecutionState
from kernelpool.telemetry.endings import REMEMBERED, Endings
from kernelpool.telemetry.observer import Silent
from kernelpool.telemetry.otlp import asked_for
from kernelpool.telemetry.tracing import Tracing, trace_id_of, traceparent


class Counting(Silent):
    def __init__(self) -> None:
        self.seen: list[tuple[str, float, float]] = []

    def executed(self, pool: str, execution: Execution, ran: float, queued: float) -> None:
        self.seen.append((execution.id, ran, queued))


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Iterator[Tracing]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield Tracing(provider.get_tracer("test"))
    provider.shutdown()


def ended(id: str = "e", **times: Any) -> Execution:
    return Execution(id, ExecutionState.SUCCEEDED, time.time(), cause=EndCause.COMPLETED, **times)


def test_without_an_sdk_a_request_still_has_an_id_of_its_own() -> None:
    spans = [Tracing().begin_request("GET /", {}, {}) for _ in range(2)]

    assert all(span.get_span_context().is_valid for span in spans)
    assert trace_id_of(spans[0]) != trace_id_of(spans[1])
    assert (traceparent(spans[0]) or "").split("-")[1] == trace_id_of(spans[0])


@pytest.mark.parametrize(
    ("error", "kind", "is_failure"),
    [(SessionNotFound("no session 'secret'"), "NoSessionFoundError", False), (SandboxLost(""), "SandboxLost", True)],
)
def test_a_span_says_what_went_wrong_in_a_word(
    tracing: Tracing, exporter: InMemorySpanExporter, error: Exception, kind: str, is_failure: bool
) -> None:
    with pytest.raises(type(error)), tracing.span("work", {}):
        raise error

    [span] = exporter.get_finished_spans()
    assert span.attributes is not None
    assert span.attributes["error.type"] == kind
    assert span.status.is_ok is not is_failure
    assert "secret" not in span.to_json()


@pytest.mark.parametrize(
    ("started", "finished"),
    [(0.0, 1.0), (LATEST, LATEST), (LATEST, 0.0), (0.0, LATEST)],
)
def test_a_kernels_span_lies_within_its_call_whatever_the_agent_says(
    tracing: Tracing, exporter: InMemorySpanExporter, started: float, finished: float
) -> None:
    counting = Counting()
    endings = Endings(counting, tracing)
    before = time.time_ns()

    with tracing.span("execute", {}) as span:
        endings.begin("guid", "e", span.get_span_context())
        endings.end("python", "guid", ended(started_at=started, finished_at=finished))

    kernel, execute = exporter.get_finished_spans()
    assert kernel.parent is not None
    assert execute.context is not None
    assert kernel.parent.span_id == execute.context.span_id
    assert kernel.start_time is not None
    assert kernel.end_time is not None
    assert before - 1e6 <= kernel.start_time <= kernel.end_time <= time.time_ns()
    [(_, ran, queued)] = counting.seen
    assert 0 <= ran < 60
    assert 0 <= queued < 60


def test_an_end_is_told_once_and_only_of_what_was_begun_here() -> None:
    counting = Counting()
    endings = Endings(counting, Tracing())
    span = Tracing().begin_request("GET /", {}, {}).get_span_context()

    endings.begin("guid", "a", span)
    for _ in range(3):
        endings.end("python", "guid", ended("a"))
        endings.begin("guid", "a", span)
    endings.end("python", "guid", ended("never-begun"))
    endings.end("python", "another", ended("a"))

    assert [id for id, _, _ in counting.seen] == ["a"]


def test_what_is_remembered_is_bounded() -> None:
    endings = Endings(Silent(), Tracing())
    span = Tracing().begin_request("GET /", {}, {}).get_span_context()

    for number in range(REMEMBERED + 10):
        endings.begin("guid", str(number), span)

    assert len(endings._known) == REMEMBERED


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
    ],
)
def test_the_standard_variables_decide(environment: dict[str, Any], wanted: bool) -> None:
    assert asked_for(environment) is wanted
