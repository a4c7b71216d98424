"""One connection, with limits on what its client may take its time for: handshake, head, reading the answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tornado.iostream import IOStream, SSLIOStream, StreamClosedError, UnsatisfiableReadError

from kernelpool.api.heads import MAX_BYTES, check_head
from kernelpool.api.refusals import refusal
from kernelpool.errors import HeadersTooLarge, KernelpoolError, MalformedHead

log = logging.getLogger(__name__)

CHUNK = 256 << 10
"""Bytes of a body handed on at a time: an upload holds a few of them in memory."""
_CONTINUE = b"HTTP/1.1 100 (Continue)\r\n\r\n"
_BARE = b"HTTP/1.1 400 Bad Request\r\n\r\n"
"""What Tornado says of a body that is framed wrongly, even when the request has its answer already."""
LINGER_SECONDS = 1.0
"""How long what still comes is read after a refusal: closing at once would reset the connection under the answer."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How slow a client may be."""

    head_seconds: float = 10.0
    """From a request's first byte to its empty line; on a new connection from the beginning, TLS handshake included."""
    stall_seconds: float = 30.0
    """In so many seconds of waiting for it, a client sends `least` of its body, or takes `least` of its answer."""
    least: int = 1024


class EdgeStream(IOStream):
    """A connection over TCP."""

    scheme = "http"

    def __init__(self, connection: socket.socket, peer: str, pace: Pace, on_gone: Callable[[str], None]) -> None:
        self.peer = peer
        self.has_spoken = False
        self.is_idle = False
        """Between two requests."""
        self._pace = pace
        self._on_gone = on_gone
        self._in_head = False
        self._answered = False
        self._sent = 0
        self._due = 0.0
        self._watch: asyncio.TimerHandle | None = None
        super().__init__(connection, max_buffer_size=16 * CHUNK, read_chunk_size=CHUNK)

    async def read_until_regex(self, regex: bytes, max_bytes: int | None = None) -> bytes:
        """The head of a request: Tornado reads nothing else so."""
        self._in_head, self._answered = True, False
        try:
            head = await self._read_head(regex, max_bytes)
            check_head(head)
        except TimeoutError:
            self.close()
            raise StreamClosedError from None
        except MalformedHead as error:
            await self._refuse(error)
            raise StreamClosedError from None
        self._in_head = False
        return head

    async def _read_head(self, regex: bytes, max_bytes: int | None) -> bytes:
        """A connection that was used may lie idle, as long as Tornado lets it. A new one has to say what it wants."""
        loop, seconds = asyncio.get_running_loop(), self._pace.head_seconds
        async with asyncio.timeout(None if self.has_spoken else seconds) as deadline:
            self.is_idle = self.has_spoken
            first = await self.read_bytes(1)
            if self.is_idle:
                deadline.reschedule(loop.time() + seconds)
            self.is_idle, self.has_spoken = False, True
            return first + await super().read_until_regex(regex, max_bytes)

    async def _refuse(self, error: KernelpoolError) -> None:
        log.info("request refused", extra={"client": self.peer, "error": type(error).__name__, "why": error.message})
        with contextlib.suppress(OSError, TimeoutError):  # StreamClosedError is an OSError
            async with asyncio.timeout(LINGER_SECONDS):
                await self.write(refusal(error))
                self.socket.shutdown(socket.SHUT_WR)
                while True:
                    await self.read_bytes(CHUNK, partial=True)
        self.close()

    # A reader that takes nothing: the same for a large answer, a download, a stream of events and a WebSocket.

    def write(self, data: bytes | memoryview) -> asyncio.Future[None]:
        if data == _BARE:
            # A second answer would be taken for that of the next request.
            data = b"" if self._answered else refusal(MalformedHead("the body is not framed as HTTP/1.1 has it"))
        self._answered = self._answered or data != _CONTINUE
        loop = asyncio.get_running_loop()
        if not self.writing():
            self._sent, self._due = 0, loop.time() + self._pace.stall_seconds
        future = super().write(data)
        if self.writing() and self._watch is None:
            self._watch = loop.call_at(self._due, self._check_progress)
        return future

    def write_to_fd(self, data: memoryview) -> int:
        try:
            sent = super().write_to_fd(data)
        finally:
            del data  # as Tornado does: a traceback that holds the view would lock its buffer
        self._sent += sent
        return sent

    def _check_progress(self) -> None:
        self._watch = None
        if not self.writing():
            return
        loop = asyncio.get_running_loop()
        if loop.time() >= self._due:
            if self._sent < self._pace.least:
                log.info("client reads too slowly", extra={"client": self.peer})
                self.close()
                return
            self._sent, self._due = 0, loop.time() + self._pace.stall_seconds
        self._watch = loop.call_at(self._due, self._check_progress)

    def close(self, exc_info: Any = False) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if isinstance(exc_info, UnsatisfiableReadError) and self._in_head and not self.closed():
            error = HeadersTooLarge(f"the request's headers are larger than {MAX_BYTES} bytes")
            with contextlib.suppress(OSError):
                self.write_to_fd(memoryview(refusal(error)))
        super().close(exc_info)

    def close_fd(self) -> None:
        super().close_fd()
        self._on_gone(self.peer)


class EdgeTlsStream(EdgeStream, SSLIOStream):
    """The same over TLS."""

    scheme = "https"
