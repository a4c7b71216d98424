"""Sends traces to an OTLP collector over HTTP, when somebody asked for it: with the setting, or OpenTelemetry's own
variables, which its SDK reads by itself (headers, certificates, sampling, names)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from kernelpool import __version__
from kernelpool.errors import InvalidRequest
from kernelpool.telemetry.tracing import Tracing

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def asked_for(environment: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's standard variables name a collector, and do not switch traces off."""
    off = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    exporter = environment.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower()
    return not off and exporter != "none" and any(environment.get(name, "").strip() for name in _ENDPOINTS)


@asynccontextmanager
async def open_tracing(endpoint: str | None, environment: Mapping[str, str]) -> AsyncIterator[Tracing]:
    """`endpoint` is the URL that spans are posted to; without one the environment decides. Leaving it sends what is
    left. Raises `InvalidRequest` when traces are wanted and the extra is not installed."""
    if endpoint is None and not asked_for(environment):
        yield Tracing()
        return
    provider = await asyncio.to_thread(_provider, endpoint)
    try:
        yield Tracing(provider.get_tracer("kernelpool", __version__))
    finally:
        # Bounded by the exporter's own timeout; a collector that is gone must not hold up the end for longer.
        await asyncio.to_thread(provider.shutdown)


def _provider(endpoint: str | None) -> Any:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - an extra
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise InvalidRequest(
            f"traces are asked for, but {error.name} is not installed: pip install 'kernelpool[otel]'"
        ) from None
    resource = Resource.create({SERVICE_VERSION: __version__})
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):  # no OTEL_ variable named it
        resource = resource.merge(Resource({SERVICE_NAME: "kernelpool"}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return provider
