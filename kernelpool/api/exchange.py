"""Exchange: one request as operators see it: a span, a line in the access log, and what is counted."""

from __future__ import annotations

import contextvars
import logging
import time

from tornado.httputil import HTTPServerRequest

from kernelpool.telemetry import Telemetry
from kernelpool.telemetry.audit import Action, Entry
from kernelpool.telemetry.tracing import Span, Tracing, Value, enter, fail, trace_id_of

log = logging.getLogger("kernelpool.access")

CLIENT_LEFT = 499
"""nginx's word for a client that did not wait for the answer."""


class Exchange:
    def __init__(self, telemetry: Telemetry, request: HTTPServerRequest, route: str, *, probe: bool) -> None:
        """A probe comes every few seconds, from a machine: it is counted, but makes no trace and no line."""
        self.received = 0
        self.sent = 0
        self._telemetry = telemetry
        self._request = request
        self._route = route
        self._probe = probe
        self._span = self._begin(Tracing() if probe else telemetry.tracing)
        self._began = time.monotonic()
        self._ended = False
        self.context = contextvars.copy_context()
        """In which all work on the request runs."""

    @property
    def trace_id(self) -> str:
        return trace_id_of(self._span)

    def enter(self) -> None:
        """To be called in the request's own task."""
        enter(self._span)
        self.context = contextvars.copy_context()

    def refused(self, code: str, status: int, tenant: str = "", principal: str = "") -> None:
        """The answer is an error."""
        self._telemetry.observer.refused(code)
        self._span.set_attribute("error.type", code)
        if status in (401, 403):
            self._telemetry.audit.record(Entry(Action.DENIED, code, tenant, principal))

    def end(self, status: int = CLIENT_LEFT) -> None:
        """Once: whatever comes after the end of a request does not count."""
        if self._ended:
            return
        self._ended = True
        method, seconds = self._request.method or "", time.monotonic() - self._began
        self._telemetry.observer.answered(method, self._route, status, seconds)
        self._telemetry.observer.moved(self._route, self.received, self.sent)
        if status != CLIENT_LEFT:
            self._span.set_attribute("http.response.status_code", status)
        if status >= 500:
            fail(self._span)
        self._span.end()
        log.log(logging.DEBUG if self._probe else logging.INFO, "request", extra=self._facts(status, seconds))

    def _begin(self, tracing: Tracing) -> Span:
        request = self._request
        # Neither the query, which holds the identifier, nor the path, which may hold the name of a file.
        attributes: dict[str, Value] = {
            "http.request.method": request.method or "",
            "http.route": self._route,
            "url.scheme": request.protocol,
            "user_agent.original": request.headers.get("User-Agent", "")[:200],
        }
        return tracing.begin_request(f"{request.method} {self._route}", request.headers, attributes)

    def _facts(self, status: int, seconds: float) -> dict[str, str | int | float | None]:
        return {
            "method": self._request.method,
            "path": self._request.path,
            "status": status,
            "seconds": round(seconds, 4),
            "trace_id": self.trace_id,
        }
