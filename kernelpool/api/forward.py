"""What is below the path of a pool of custom containers: passed on to the session's container as it came.

    ANY  {pool}/{tail}?identifier=…   → ANY /{tail}?identifier=…   WebSockets too

On such a pool every path belongs to the container, as in ACA, but for `.management/…`, and for `/session` and
`/listSessions` when they are asked with an `api-version`.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import AsyncIterator, Mapping
from http.client import responses
from typing import Any

from tornado.escape import url_unescape
from tornado.httputil import HTTPServerRequest
from tornado.iostream import IOStream, StreamClosedError

from kernelpool.agents import Answer, Forward
from kernelpool.agents.hygiene import SANDBOXED
from kernelpool.api.aca_handler import POOL_PATH
from kernelpool.api.base import ApiHandler, Collaborators
from kernelpool.api.edge import is_upgrade
from kernelpool.api.media import has_body
from kernelpool.api.multipart import FileData, Pipe
from kernelpool.api.openapi.operation import POOL, Json, Operation, Surface, answer, at_both_bases, header, ref
from kernelpool.api.query import required_identifier
from kernelpool.errors import ContainerFault, NotFound, PayloadTooLarge
from kernelpool.gateway import Gateway, PoolInfo, Session

log = logging.getLogger(__name__)

CHUNK = 64 << 10
KEEP_ALIVE_SECONDS = 60
"""After which the machine asks whether the client of a silent WebSocket is still there."""
BELOW_POOL = POOL_PATH + "/(?P<tail>.*)"
_BELOW = re.compile(BELOW_POOL, re.DOTALL)
_MANAGEMENT = re.compile(r"(?i)\.management/(?:getSession|listSessions|stopSession)")
_SESSIONS = re.compile(r"(?i)session|listSessions")
_GATEWAY_SAYS = frozenset({"x-content-type-options", "referrer-policy", "cross-origin-resource-policy", "date"})
"""Headers that every answer has from us, whatever the container says."""


def pool_of_container(gateway: Gateway, request: HTTPServerRequest) -> bytes | None:
    """The pool whose container a request is for; None when it is for the gateway."""
    match = _BELOW.fullmatch(request.path)
    if match is None:
        return None
    pool = url_unescape(match["pool"], encoding=None, plus=False)
    if not gateway.runs_containers(pool.decode(errors="replace")) or _MANAGEMENT.fullmatch(match["tail"]):
        return None
    asks_us = any(name.lower() == "api-version" for name in request.query_arguments)
    return None if asks_us and _SESSIONS.fullmatch(match["tail"]) else pool


class ForwardHandler(ApiHandler):
    """The body is passed on while it comes in, the answer while it comes out, each as fast as the other side takes
    it. Passing on runs beside reading, and either ends the other."""

    takes_json = False
    takes_encodings = True
    pool: PoolInfo

    def initialize(self, collaborators: Collaborators) -> None:
        super().initialize(collaborators)
        self._body = Pipe()
        self._passing: asyncio.Task[None] | None = None
        self._received = 0

    @property
    def body_limit(self) -> int:
        return self.pool.settings.max_upload

    @property
    def identifier(self) -> str:
        return required_identifier(self.query.identifier)

    async def accept(self) -> None:
        name = self.path_kwargs["pool"]
        self.pool = self.gateway.pool(self.principal, name)
        if not self.gateway.runs_containers(name):
            raise NotFound(f"nothing is at {self.request.path[:200]}")
        self.identifier  # noqa: B018 - raises when it is missing

    async def receive(self, chunk: bytes) -> None:
        self._received += len(chunk)
        if self._received > self.body_limit:
            self._stop()
            raise PayloadTooLarge(f"body is larger than {self.body_limit} bytes")
        passing = self._start()
        await self._body.put(FileData(chunk))
        if passing.done() and not self._headers_written:
            passing.result()

    async def _any(self, **_: str) -> None:
        await self.serve(self._pass_rest())

    get = post = put = patch = delete = options = _any

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self._stop()

    async def _pass_rest(self) -> None:
        """Of the body: nothing. What is left is the answer."""
        passing = self._start()
        await self._body.close()
        await passing

    def _start(self) -> asyncio.Task[None]:
        if self._passing is None:
            self._passing = self.collaborators.works.start(self._pass(), self.exchange.context)
        return self._passing

    def _stop(self) -> None:
        if self._passing is not None:
            self._passing.cancel()

    async def _pass(self) -> None:
        try:
            async with (
                self.gateway.use(self.principal, self.pool.name, self.identifier) as session,
                session.forward(self._request()) as answer,
            ):
                await self._pass_back(session, answer)
        except StreamClosedError:
            raise
        except Exception as error:
            if not self._headers_written:
                raise
            # Its client has a part of the answer, and must not take it for the whole.
            log.warning("answer broken off", extra={**self._facts, "error": str(error)})
            self.connection.stream.close()
        finally:
            await self._body.close()

    def _request(self) -> Forward:
        match = _BELOW.fullmatch(self.request.path)
        assert match is not None  # it has been routed by that
        headers, length = self.request.headers, None
        if "Transfer-Encoding" in headers:
            length = -1
        elif "Content-Length" in headers:
            length = int(headers["Content-Length"])
        return Forward(
            method=self.request.method or "",
            target=(self.request.uri or "")[match.end("pool") :],
            headers=tuple(headers.get_all()),
            body=self._chunks() if has_body(headers) else None,
            length=length,
            upgrades=self.request.method == "GET" and is_upgrade(self.request) and not has_body(headers),
        )

    async def _chunks(self) -> AsyncIterator[bytes]:
        while (piece := await self._body.get()) is not None:
            assert isinstance(piece, FileData)
            yield piece.data

    async def _pass_back(self, session: Session, answer: Answer) -> None:
        self._show_head(session, answer)
        if answer.tunnel is not None:
            await self._tunnel(answer)
            return
        await self.flush()
        async for chunk in answer.chunks:
            self.write(chunk)
            await self.flush()

    def _show_head(self, session: Session, answer: Answer) -> None:
        for name in ("Server", "Content-Type", "Cache-Control"):
            self.clear_header(name)
        try:
            for name, value in answer.headers:
                if name.lower() not in _GATEWAY_SAYS:
                    self.add_header(name, value)
        except ValueError as error:
            self.clear()
            raise ContainerFault("The container answered with a header that is none.") from error
        self.set_status(answer.status, responses.get(answer.status, "Unknown"))
        self.add_header("Content-Security-Policy", SANDBOXED)
        self.set_header("x-ms-session-guid", session.info.sandbox)
        self.set_header("x-ms-new-allocation", "true" if session.is_new else "false")
        if (notice := session.notice()) is not None:
            self.set_header("x-kernelpool-notice", notice.encode("ascii", "replace").decode())

    async def _tunnel(self, answer: Answer) -> None:
        """Frames are the two ends' own business: as bytes they pass both ways, none is ever held as a whole."""
        lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
        lines += [f"{name}: {value}" for name, value in self._headers.get_all()]
        self._headers_written = True
        stream = self.detach()
        tunnel = _Tunnel(stream, answer)
        self.collaborators.sockets.add(tunnel)
        try:
            await tunnel.run("\r\n".join([*lines, "", ""]).encode("latin-1"))
        finally:
            self.collaborators.sockets.discard(tunnel)
            stream.close()
            self.exchange.received, self.exchange.sent = tunnel.received, tunnel.sent
            self.exchange.end(answer.status)


class _Tunnel:
    def __init__(self, stream: IOStream, answer: Answer) -> None:
        self._stream = stream
        self._answer = answer
        self.received = 0
        self.sent = 0

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        """Between two frames or in one: only the two ends could tell."""
        self._stream.close()

    async def run(self, head: bytes) -> None:
        """Until one side closes."""
        connection = self._stream.socket
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEP_ALIVE_SECONDS)
        ways = [asyncio.create_task(self._up()), asyncio.create_task(self._down(head))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _up(self) -> None:
        writer = self._answer.tunnel
        assert writer is not None  # that is what makes it a tunnel
        while True:
            data = await self._stream.read_bytes(CHUNK, partial=True)
            self.received += len(data)
            writer.write(data)
            await writer.drain()

    async def _down(self, head: bytes) -> None:
        await self._stream.write(head)
        async for chunk in self._answer.chunks:
            self.sent += len(chunk)
            await self._stream.write(chunk)


def routes(collaborators: Collaborators) -> list[Any]:
    """Last of all. The application asks `pool_of_container` before it looks at any route."""
    return [(BELOW_POOL, ForwardHandler, {"collaborators": collaborators})]


_ANSWERS: Mapping[int | str, Json] = {
    "default": answer(
        "What the container answers. Redirects are not followed, nothing is unpacked; headers that concern the whole "
        "origin, `Set-Cookie` among them, end at the gateway.",
        {"*/*": {}},
        {
            "x-ms-session-guid": ref("SessionGuid", "headers"),
            "x-ms-new-allocation": ref("NewAllocation", "headers"),
            "x-kernelpool-notice": header("Why the session before this one ended, said once."),
        },
    )
}


def _operation(method: str) -> Operation:
    return Operation(
        f"{method.lower()}InContainer",
        f"{method} a path of a custom container",
        _ANSWERS,
        description="Of any depth. A WebSocket is passed on as well. `Authorization` and `Cookie` are not.",
        parameters=[ref("identifier", "parameters")],
        body={"content": {"*/*": {}}} if method in ("POST", "PUT", "PATCH") else None,
        errors=(413, 502, 504),
    )


SURFACE = Surface(
    "Custom containers",
    "Everything below the path of a pool whose sandboxes run an image of their own.",
    at_both_bases(
        {
            f"{method} {POOL}/{{tail}}": _operation(method)
            for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
        }
    ),
)
