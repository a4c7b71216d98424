"""The HTTP server with limits on everything that a stranger may send before anybody has looked at it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tornado.http1connection import HTTP1Connection
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPConnection, HTTPHeaders, HTTPMessageDelegate, RequestStartLine, ResponseStartLine
from tornado.web import Application

from kernelpool.api.connections import CHUNK, EdgeStream, EdgeTlsStream, Pace
from kernelpool.api.heads import MAX_BYTES
from kernelpool.api.listener import Crowd, Listener
from kernelpool.api.media import has_body
from kernelpool.network import Network, forwarded_client, is_within, parse_address

_FORWARDED = ("X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port", "X-Real-Ip", "Forwarded")


class EdgeServer(HTTPServer):
    """Made by `make_server`. (Tornado calls `initialize` where others have a constructor.)"""

    def initialize(  # type: ignore[override]
        self,
        application: Application,
        *,
        crowd: Crowd,
        pace: Pace,
        trusted: Sequence[Network],
        tls: Callable[[], ssl.SSLContext] | None,
        **parameters: Any,
    ) -> None:
        super().initialize(application, **parameters)
        self._crowd = crowd
        self._pace = pace
        self._trusted = trusted
        self._tls = tls
        self._listeners: list[Listener] = []
        self._streams: set[EdgeStream] = set()
        self._draining = False

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        for each in sockets:
            self._listeners.append(Listener(each, self._crowd, self._welcome, speaks_tls=self._tls is not None))

    def stop(self) -> None:
        """Accepts nobody any more."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    def drain(self) -> None:
        """From now on an answer is its connection's last, and who has nothing to say is shown out."""
        self._draining = True
        self.conn_params.no_keep_alive = True
        for stream in list(self._streams):
            if stream.is_idle:
                stream.close()

    def _welcome(self, connection: socket.socket, address: Any) -> None:
        """Raises `OSError` when the client has gone."""
        peer = address[0] if isinstance(address, tuple) else ""
        gone = self._crowd.discard
        if self._tls is None:
            stream = EdgeStream(connection, peer, self._pace, gone)
        else:
            connection.getpeername()  # raises when it has gone: wrapping it would leave a socket to nobody
            wrapped = self._tls().wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            stream = EdgeTlsStream(wrapped, peer, self._pace, gone)
        self.handle_stream(stream, address)

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        delegate = super().start_request(server_conn, request_conn)
        assert isinstance(request_conn, HTTP1Connection)
        stream = request_conn.stream
        assert isinstance(stream, EdgeStream)
        self._streams.add(stream)
        if self._draining and stream.has_spoken:
            stream.close()
        return _Gate(delegate, request_conn, stream, self._pace, self._trusted)

    def on_close(self, server_conn: object) -> None:
        super().on_close(server_conn)
        self._streams.discard(server_conn.stream)  # type: ignore[attr-defined]


class _Gate(HTTPMessageDelegate):
    """Between the connection and the application: whom to believe about the client, and how slowly a body may come."""

    def __init__(
        self,
        delegate: HTTPMessageDelegate,
        connection: HTTP1Connection,
        stream: EdgeStream,
        pace: Pace,
        trusted: Sequence[Network],
    ) -> None:
        self._delegate = delegate
        self._connection = connection
        self._stream = stream
        self._trusted = trusted
        self._pace = pace
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._left = pace.stall_seconds
        self._received = 0

    async def headers_received(self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders) -> None:
        self._believe(headers)
        if (result := self._delegate.headers_received(start_line, headers)) is not None:
            await result
        if has_body(headers):
            self._expect_more()

    async def data_received(self, chunk: bytes) -> None:
        self._note(len(chunk))
        if (result := self._delegate.data_received(chunk)) is not None:
            await result
        self._expect_more()

    def finish(self) -> None:
        self._stop_timer()
        self._delegate.finish()

    def on_connection_close(self) -> None:
        self._stop_timer()
        self._delegate.on_connection_close()

    def _believe(self, headers: HTTPHeaders) -> None:
        """A trusted proxy says who the client is and what it asked for. Of anybody else it is thrown away, so that
        nobody behind this line can believe it by mistake."""
        said = {name: headers.get(name, "") for name in _FORWARDED}
        for name in _FORWARDED:
            headers.pop(name, None)
        context: Any = self._connection.context
        context.remote_ip, context.protocol = self._stream.peer, self._stream.scheme
        if not is_within(parse_address(self._stream.peer), self._trusted):
            return
        context.remote_ip = forwarded_client(self._stream.peer, said["X-Forwarded-For"], self._trusted)
        # Of several values the right-most one is from the proxy next to us.
        scheme = said["X-Forwarded-Proto"].rpartition(",")[2].strip().lower()
        if scheme in ("http", "https"):
            context.protocol = scheme
        if host := said["X-Forwarded-Host"].rpartition(",")[2].strip():
            headers["Host"] = host

    def _expect_more(self) -> None:
        self._since = self._loop.time()
        self._timer = self._loop.call_later(self._left, self._stream.close)

    def _note(self, size: int) -> None:
        """What the handler takes its time for is not held against the client."""
        self._stop_timer()
        self._left -= self._loop.time() - self._since
        self._received += size
        if self._received >= self._pace.least:
            self._left, self._received = self._pace.stall_seconds, 0

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def make_server(
    application: Application,
    *,
    max_body: int,
    idle_timeout: float,
    body_timeout: float,
    crowd: Crowd | None = None,
    pace: Pace | None = None,
    trusted: Sequence[Network] = (),
    tls: Callable[[], ssl.SSLContext] | None = None,
) -> EdgeServer:
    """`tls` is asked for each new connection: certificates change while we run."""
    return EdgeServer(
        application,
        crowd=Crowd(4096, 4096) if crowd is None else crowd,
        pace=pace or Pace(),
        trusted=trusted,
        tls=tls,
        chunk_size=CHUNK,
        max_header_size=2 * MAX_BYTES,  # what is between is answered, not cut off
        max_body_size=max_body,  # for what no handler has a say in; they set their own
        idle_connection_timeout=idle_timeout,
        body_timeout=body_timeout,
    )
