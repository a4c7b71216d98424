"""The HTTP server with limits on everything that a stranger may send before anybody has looked at it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from tornado.http1connection import HTTP1Connection
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPConnection, HTTPHeaders, HTTPMessageDelegate, RequestStartLine, ResponseStartLine
from tornado.web import Application

CHUNK = 256 << 10
"""Bytes of a body handed on at a time: an upload holds a few of them in memory."""
MAX_HEADERS = 64 << 10
FIRST_REQUEST_SECONDS = 10.0
"""A new connection has to say by then what it wants; Tornado would wait as long as for an idle one."""


class EdgeServer(HTTPServer):
    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        delegate = super().start_request(server_conn, request_conn)
        if hasattr(server_conn, "has_spoken") or not isinstance(request_conn, HTTP1Connection):
            return delegate
        server_conn.has_spoken = True  # type: ignore[attr-defined]
        return _FirstRequest(delegate, request_conn)


class _FirstRequest(HTTPMessageDelegate):
    """Closes the connection unless the headers come in time."""

    def __init__(self, delegate: HTTPMessageDelegate, connection: HTTP1Connection) -> None:
        self._delegate = delegate
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(FIRST_REQUEST_SECONDS, connection.stream.close)

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        self._deadline.cancel()
        return self._delegate.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        return self._delegate.data_received(chunk)

    def finish(self) -> None:
        self._delegate.finish()

    def on_connection_close(self) -> None:
        self._deadline.cancel()
        self._delegate.on_connection_close()


def make_server(application: Application, *, max_body: int, idle_timeout: float, body_timeout: float) -> EdgeServer:
    return EdgeServer(
        application,
        chunk_size=CHUNK,
        max_buffer_size=16 * CHUNK,
        max_header_size=MAX_HEADERS,
        max_body_size=max_body,  # for what no handler has a say in; they set their own
        idle_connection_timeout=idle_timeout,
        body_timeout=body_timeout,
    )
