"""What stands between a client and its gateway when things go wrong: a proxy that cuts, a server of canned answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress


class Proxy:
    """Passes bytes on, until it sees some: then it resets that connection, as often as it was told to."""

    silent_after = b""
    """A client that has sent this hears nothing any more on that connection."""

    def __init__(self, target: int, cut_at: bytes, times: int) -> None:
        self._target = target
        self._cut_at = cut_at
        self.left = times
        self.port = 0
        self.received = b""
        """From clients, all connections together."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self._target)
        silent = asyncio.Event()
        upward = asyncio.create_task(self._upward(reader, upstream_writer, silent))
        try:
            await self._downward(upstream_reader, writer, silent)
        finally:
            upward.cancel()
            writer.transport.abort()
            upstream_writer.transport.abort()

    async def _upward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, silent: asyncio.Event) -> None:
        while data := await reader.read(65536):
            self.received += data
            if self.silent_after and self.silent_after in data:
                silent.set()
            writer.write(data)
            await writer.drain()

    async def _downward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, silent: asyncio.Event
    ) -> None:
        seen = b""
        while data := await reader.read(65536):
            seen += data
            if self.left and self._cut_at in seen:
                self.left -= 1
                return
            if silent.is_set():
                continue
            writer.write(data)
            with suppress(ConnectionError):
                await writer.drain()


@asynccontextmanager
async def cutting(target: int, *, at: bytes, times: int = 1) -> AsyncIterator[Proxy]:
    """`at` is never passed on the first `times` times; with b"" nothing of an answer is."""
    proxy = Proxy(target, at, times)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()


@asynccontextmanager
async def canned(answers: Sequence[bytes]) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that answers one connection after the other with these very bytes; its URL, and the heads it got."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answers[min(len(heads), len(answers)) - 1])
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", heads
    finally:
        server.close()


def answer(status: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body
