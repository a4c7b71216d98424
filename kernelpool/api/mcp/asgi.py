"""A request of Tornado's for an ASGI application, and its answer back: as the SDK wants to be asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

from tornado.httputil import HTTPServerRequest
from tornado.iostream import StreamClosedError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
App = Callable[[Scope, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

_OURS = frozenset({"connection", "date", "server", "content-length", "transfer-encoding", "cache-control"})
"""Headers that the gateway or Tornado sets."""


class Answering(Protocol):
    """The handler that the answer goes to."""

    def set_status(self, status_code: int) -> None: ...
    def set_header(self, name: str, value: str) -> None: ...
    def clear_header(self, name: str) -> None: ...
    async def push(self, data: bytes = b"") -> None: ...
    def finish(self, chunk: bytes | None = None) -> Awaitable[None]: ...


async def serve(app: App, request: HTTPServerRequest, body: bytes, handler: Answering, extra: dict[str, Any]) -> None:
    """Whoever leaves cancels this task, so the application is never told that the client has disconnected. `extra` goes
    into the scope."""
    bodies = [body]
    pieces: list[bytes] = []
    is_stream = False

    async def receive() -> Message:
        if bodies:
            return {"type": "http.request", "body": bodies.pop(), "more_body": False}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        nonlocal is_stream
        if message["type"] == "http.response.start":
            is_stream = _begin(handler, message)
        elif is_stream and message.get("more_body"):
            await handler.push(message["body"])
        elif message.get("more_body"):
            pieces.append(message["body"])
        else:
            await handler.finish(b"".join([*pieces, message.get("body", b"")]) or None)

    try:
        await app({**_scope_of(request), **extra}, receive, send)
    except BaseExceptionGroup as group:
        if group.split(StreamClosedError)[1] is not None:
            raise
        raise StreamClosedError from None


def _scope_of(request: HTTPServerRequest) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": request.protocol,
        "path": request.path,
        "raw_path": request.path.encode(),
        "root_path": "",
        "query_string": b"",  # it may name a session, which is nothing for the SDK to know
        "headers": [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in _headers(request)],
        "client": None,
        "server": None,
        "state": {},
    }


def _headers(request: HTTPServerRequest) -> list[tuple[str, str]]:
    """Without credentials."""
    secret = ("authorization", "x-ms-apikey", "cookie")
    return [(name, value) for name, value in request.headers.get_all() if name.lower() not in secret]


def _begin(handler: Answering, message: Message) -> bool:
    handler.set_status(message["status"])
    handler.clear_header("Content-Type")
    is_stream = False
    for raw_name, raw_value in message.get("headers", []):
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        is_stream = is_stream or (name == "content-type" and value.startswith("text/event-stream"))
        if name not in _OURS:
            handler.set_header(name, value)
    return is_stream
